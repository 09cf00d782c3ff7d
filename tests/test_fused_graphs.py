"""Fused kernels in graphs: what torch takes their operators for, compilation and export."""

import copy

import pytest
import torch
from kernels import NAMES, build, draw, exact, near, step, taken
from torch.export import Dim
from torch.testing import assert_close

import attzoo
from attzoo.fast import autograd, choice

pytestmark = pytest.mark.usefixtures("as_it_was")
every = pytest.mark.parametrize("name", NAMES)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")   # opcheck's, in 2.15
@every
def test_operators_are_what_torch_takes_them_for(name):
    block, x = build(name), draw(2, 8, 4, 3)
    calls, real = [], autograd.Fused.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autograd.Fused, "forward", lambda self, *args: calls.append((self, args)) or real(self, *args))
        assert taken(block, x)
    (it, args), = calls
    given = tuple(t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t for t in args)
    torch.library.opcheck(it.operator, given)
    with torch.no_grad():
        y, *kept = it.forward(*args)
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in args]
    back = getattr(torch.ops.attzoo, f"{name}_backward").default
    torch.library.opcheck(back, (draw(2, 8, 4, 3, seed=1), None, kept, *plain))
    # with a relu at the end, which y tells of
    torch.library.opcheck(back, (draw(2, 8, 4, 3, seed=1), y, kept, *plain[:-1], True))


def seen(graph):
    return {str(node.target) for node in graph.graph.nodes}


@every
def test_torch_compile(name):
    """Training, with what it leaves in the buffers; and again in another mode, of other sizes."""
    block, graphs = build(name), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x, dy = draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    wanted, compiled = step(block, x, dy), copy.deepcopy(block)
    compiled.compile(fullgraph=True, backend="aot_eager")
    got = step(compiled, x, dy)
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    both = torch.compile(block.eval(), fullgraph=True, backend=backend)
    for mode in ("eager", "triton"):
        with attzoo.kernels(mode):
            y = both(x)
        assert any(f"attzoo.{name}" in target for target in seen(graphs[-1])) is (mode == "triton")
        near({"y": y}, {"y": exact(block, x, dy)["y"]})
    assert len(graphs) == 2


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")   # inductor's own use
def test_torch_compile_by_inductor():
    block, x = build("cbam").eval(), draw(2, 8, 4, 3).requires_grad_()
    with attzoo.kernels("triton"):
        y = torch.compile(lambda x: block(x.relu() + 1).sin(), fullgraph=True)(x)
        wanted = block(x.relu() + 1).sin()
    assert_close(y, wanted)
    learned = [x, *block.parameters()]
    assert_close(torch.autograd.grad(y.sum(), learned), torch.autograd.grad(wanted.sum(), learned))


def test_an_export_is_for_batches_of_any_size():
    """Neither what 32 bits count nor a recorded win, which begins at a size, ties a program to some sizes."""
    block, x, wide = build("se", 64).eval(), draw(2, 64, 32, 56), {0: Dim("n", min=1, max=65536)}
    with attzoo.kernels("triton"):
        assert "attzoo.se.default" in seen(torch.export.export(block, (x,), dynamic_shapes=(wide,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "has_recorded_win", lambda kind, x: x.numel() >= 300_000)
        assert taken(block, draw(3, 64, 32, 56), mode="auto")
        assert "attzoo.se.default" not in seen(torch.export.export(block, (x,), dynamic_shapes=(wide,)))


@every
def test_torch_export(name):
    block = build(name).eval()
    sizes = {0: Dim("n"), 2: Dim("h"), 3: Dim("w")}
    with attzoo.kernels("triton"):
        program = torch.export.export(block, (draw(2, 8, 4, 3),), dynamic_shapes=(sizes,))
        assert f"attzoo.{name}.default" in seen(program)
        for shape in ((3, 8, 5, 7), (1, 8, 2, 9)):
            x = draw(*shape)
            assert torch.equal(program.module()(x), block(x))
