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
import torch
import attzoo.torch   # which imports no kernels
try:
    torch.export.load({path!r})
except Exception as err:
    print(type(err).__name__)
import attzoo.blocks.se.triton{interpreter}
program = torch.export.load({path!r}).module()
x, expected = torch.load({data!r})
assert torch.equal(program(x), expected)
print("equal")
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


def test_loading_without_the_operator_names_it_and_with_it_gives_the_same_output(files):
    program = LOAD.format(interpreter=", interpreter" if choice.INTERPRETED else "", **files)
    process = python(program, PYTHONPATH=os.pathsep.join(sys.path))
    assert process.returncode == 0, process.stderr
    error, result = process.stdout.split()
    assert error.endswith("Error")
    assert result == "equal"
    assert "torch.ops.attzoo.se" in process.stderr   # in torch's warning, to which its error refers
