"""Fused kernels in graphs: opcheck of their operators, compilation and export."""

import copy

import pytest
import torch
from kernels import NAMES, assert_near, build, draw, exact, step, uses_kernels
from torch.export import Dim
from torch.testing import assert_close

import attzoo
from attzoo.fast import autograd, choice

pytestmark = pytest.mark.usefixtures("default_kernels")
all_blocks = pytest.mark.parametrize("name", NAMES)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")   # of opcheck in torch 2.15
@all_blocks
@pytest.mark.one_of_each(share=3)
def test_operators_pass_opcheck(name):
    block, x = build(name), draw(2, 8, 4, 3)
    calls, original = [], autograd.Fused.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            autograd.Fused,
            "forward",
            lambda self, *args, **kwargs: calls.append((self, args)) or original(self, *args, **kwargs),
        )
        assert uses_kernels(block, x)
    (fused, args), = calls
    inputs = tuple(tensor.detach().requires_grad_() if isinstance(tensor, torch.Tensor) else tensor for tensor in args)
    torch.library.opcheck(fused.operator, inputs)
    with torch.no_grad():
        y, *saved = fused.forward(*args)
    detached = [tensor.detach() if isinstance(tensor, torch.Tensor) else tensor for tensor in args]
    backward = getattr(torch.ops.attzoo, f"{name}_backward").default
    torch.library.opcheck(backward, (draw(2, 8, 4, 3, seed=1), None, saved, *detached))
    # with a relu, whose backward pass needs y
    torch.library.opcheck(backward, (draw(2, 8, 4, 3, seed=1), y, saved, *detached[:-1], True))


def targets(graph):
    """Return the names of the targets of a graph's nodes."""
    return {str(node.target) for node in graph.graph.nodes}


@all_blocks
def test_torch_compile_matches_eager_kernels(name):
    """Compare a training step with its buffers, and eval mode under both settings of kernels."""
    block, graphs = build(name), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x, dy = draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    expected, compiled = step(block, x, dy), copy.deepcopy(block)
    compiled.compile(fullgraph=True, backend="aot_eager")
    actual = step(compiled, x, dy)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    compiled = torch.compile(block.eval(), fullgraph=True, backend=backend)
    for mode in ("eager", "triton"):
        with attzoo.kernels(mode):
            y = compiled(x)
        assert any(f"attzoo.{name}" in target for target in targets(graphs[-1])) is (mode == "triton")
        assert_near({"y": y}, {"y": exact(block, x, dy)["y"]})
    assert len(graphs) == 2


def test_torch_compile_with_inductor_matches_eager_kernels():
    block, x = build("cbam").eval(), draw(2, 8, 4, 3).requires_grad_()
    with attzoo.kernels("triton"):
        y = torch.compile(lambda x: block(x.relu() + 1).sin(), fullgraph=True)(x)
        expected = block(x.relu() + 1).sin()
    assert_close(y, expected)
    learned = [x, *block.parameters()]
    assert_close(torch.autograd.grad(y.sum(), learned), torch.autograd.grad(expected.sum(), learned))


def test_exported_program_accepts_batches_of_any_size():
    """Neither the 2^31 limit nor a recorded win, which has a minimum size, limits an exported program."""
    block, x, sizes = build("se", 64).eval(), draw(2, 64, 32, 56), {0: Dim("n", min=1, max=65536)}
    with attzoo.kernels("triton"):
        assert "attzoo.se.default" in targets(torch.export.export(block, (x,), dynamic_shapes=(sizes,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "has_recorded_win", lambda kind, x: x.numel() >= 300_000)
        assert uses_kernels(block, draw(3, 64, 32, 56), mode="auto")
        assert "attzoo.se.default" not in targets(torch.export.export(block, (x,), dynamic_shapes=(sizes,)))


@all_blocks
def test_exported_program_gives_the_same_output(name):
    block = build(name).eval()
    sizes = {0: Dim("n"), 2: Dim("h"), 3: Dim("w")}
    with attzoo.kernels("triton"):
        program = torch.export.export(block, (draw(2, 8, 4, 3),), dynamic_shapes=(sizes,))
        assert f"attzoo.{name}.default" in targets(program)
        for shape in ((3, 8, 5, 7), (1, 8, 2, 9)):
            x = draw(*shape)
            assert torch.equal(program.module()(x), block(x))
