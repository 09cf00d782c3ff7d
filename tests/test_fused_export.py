"""A program that was exported with the fused kernels, in a process that begins anew, as whoever deploys it has it."""

import os
import sys

import pytest
import torch
from kernels import build, draw
from test_imports import python

import attzoo
from attzoo.fast import choice

LOAD = """
import torch{also}
program = torch.export.load({path!r}).module()
print("loaded")
x, wanted = torch.load({data!r})
assert torch.equal(program(x), wanted)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The saved program, and what went in and came out."""
    folder = tmp_path_factory.mktemp("exported")
    block, x = build("se").eval(), draw(2, 8, 4, 3)
    with attzoo.kernels("triton"), torch.no_grad():
        program = torch.export.export(block, (x,))
        wanted = block(x)
    assert "attzoo.se.default" in [str(node.target) for node in program.graph.nodes]
    torch.export.save(program, folder / "se.pt2")
    torch.save((x, wanted), folder / "data.pt")
    return {"path": str(folder / "se.pt2"), "data": str(folder / "data.pt")}


@pytest.mark.parametrize("also", ["", "; import attzoo.torch"])
def test_without_its_operator_a_program_is_refused_by_name(files, also):
    done = python(LOAD.format(also=also, **files))
    assert done.returncode != 0
    assert "loaded" not in done.stdout
    assert "torch.ops.attzoo.se" in done.stderr   # in torch's warning; its error points there


def test_with_its_operator_it_gives_the_same_numbers(files):
    also = ", attzoo.blocks.se.triton" + (", interpreter" if choice.INTERPRETED else "")
    done = python(LOAD.format(also=also, **files), PYTHONPATH=os.pathsep.join(sys.path))
    assert done.returncode == 0, done.stderr
