"""A program exported with fused kernels can be loaded in a new process, which has imported its operator."""

import os
import sys

import pytest
import torch
from kernels import build, draw
from test_imports import python

import attzoo
from attzoo.fast import choice

LOAD = """
import torch{imports}
program = torch.export.load({path!r}).module()
print("loaded")
x, expected = torch.load({data!r})
assert torch.equal(program(x), expected)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the paths of a saved program and of its input and output."""
    folder = tmp_path_factory.mktemp("exported")
    block, x = build("se").eval(), draw(2, 8, 4, 3)
    with attzoo.kernels("triton"), torch.no_grad():
        program = torch.export.export(block, (x,))
        expected = block(x)
    assert "attzoo.se.default" in [str(node.target) for node in program.graph.nodes]
    torch.export.save(program, folder / "se.pt2")
    torch.save((x, expected), folder / "data.pt")
    return {"path": str(folder / "se.pt2"), "data": str(folder / "data.pt")}


def test_loading_without_the_operator_names_it(files):
    process = python(LOAD.format(imports="; import attzoo.torch", **files))   # which imports no kernels
    assert process.returncode != 0
    assert "loaded" not in process.stdout
    assert "torch.ops.attzoo.se" in process.stderr   # in torch's warning, to which its error refers


def test_loaded_program_gives_the_same_output(files):
    imports = ", attzoo.blocks.se.triton" + (", interpreter" if choice.INTERPRETED else "")
    process = python(LOAD.format(imports=imports, **files), PYTHONPATH=os.pathsep.join(sys.path))
    assert process.returncode == 0, process.stderr
