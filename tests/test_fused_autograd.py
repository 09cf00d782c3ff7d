"""How autograd calls fused kernels, and what builds on it: residual blocks, autocast, checkpoints, training."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from kernels import DEVICE, LAYOUTS, NAMES, SPATIAL, build, draw, step
from operations import Large
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import attzoo

pytestmark = pytest.mark.usefixtures("as_it_was")
every = pytest.mark.parametrize("name", NAMES)


# ---- autograd --------------------------------------------------------------------------------------------------------


def twice(block, x, dy, mode):
    """Gradients, those of the sum of their squares, and buffers, by name, of a copy."""
    block, x, dy = copy.deepcopy(block), x.detach().requires_grad_(), dy.detach().requires_grad_()
    learned = dict(block.named_parameters())
    with attzoo.kernels(mode):
        y = block(x)
    first = torch.autograd.grad(y, [x, *learned.values()], dy, create_graph=True)
    loss = sum(g.square().sum() for g in first)
    second = torch.autograd.grad(loss, [x, dy, *learned.values()], materialize_grads=True)
    names = [f"first {name}" for name in ("x", *learned)] + [f"second {name}" for name in ("x", "dy", *learned)]
    return dict(zip(names, (g.detach() for g in (*first, *second)), strict=True)) | dict(block.named_buffers())


@every
def test_gradients_of_gradients(name):
    block, x, dy = build(name), draw(2, 8, 4, 3, layout=LAYOUTS[1]), draw(2, 8, 4, 3, seed=1)
    wanted = twice(block.double(), x.double(), dy.double(), "eager")
    got = twice(block.float(), x, dy, "triton")
    for key, w in wanted.items():
        assert_close(got[key].double(), w.double(), rtol=1e-4, atol=1e-5 * w.abs().max().clamp(min=1).item())


@pytest.mark.parametrize("name", SPATIAL)
def test_gradients_of_gradients_are_of_the_mode_that_the_forward_pass_was_in(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    found = []
    for mode in ("triton", "eager"):
        with attzoo.kernels(mode):
            y = block.train()(x)
        block.eval()
        found.append(torch.autograd.grad(y.square().sum(), x, create_graph=True)[0])
        assert not any(part.training for part in block.modules())
    assert_close(*found, rtol=1e-5, atol=1e-5)


@every
def test_a_batch_of_backward_passes(name):
    block, x, dys = build(name), draw(2, 8, 4, 3).requires_grad_(), draw(3, 2, 8, 4, 3, seed=1)
    wanted = [x, *block.parameters()]
    with attzoo.kernels("triton"):
        y = block(x)
    together = torch.autograd.grad(y, wanted, dys, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, wanted, dy, retain_graph=True) for dy in dys]
    for got, each in zip(together, zip(*alone, strict=True), strict=True):
        assert_close(got, torch.stack(each), rtol=1e-5, atol=1e-5)


@every
def test_a_graph_that_is_kept_serves_again(name):
    block, x, dy = build(name), draw(2, 8, 4, 3).requires_grad_(), draw(2, 8, 4, 3, seed=1)
    with attzoo.kernels("triton"):
        y = block(x)
    first = torch.autograd.grad(y, x, dy, retain_graph=True)
    torch.autograd.grad(y.sum(), [*block.parameters()], retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(y, x, dy))


@every
def test_an_input_changed_in_between_is_refused(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    z = x * 1
    with attzoo.kernels("triton"):
        y = block(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every
def test_weights_by_functional_call(name):
    block, x = build(name).eval(), draw(2, 8, 4, 3)
    given = {key: (p.detach() * 2).requires_grad_() for key, p in block.named_parameters()}
    with attzoo.kernels("triton"):
        got = torch.autograd.grad(torch.func.functional_call(block, given, x).square().sum(), [*given.values()])
    with attzoo.kernels("eager"):
        wanted = torch.autograd.grad(torch.func.functional_call(block, given, x).square().sum(), [*given.values()])
    assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# ---- at the end of a residual block ----------------------------------------------------------------------------------


class Tail(nn.Module):
    """What a residual block ends in."""

    def __init__(self, block, act):
        super().__init__()
        self.block, self.act = block, act

    def forward(self, x, shortcut):
        return self.block(x, shortcut, self.act)


def tailed(mode, name, act, layout, *, compiled=False):
    """y, its gradients, and the slope of one; the shortcut lies channels first whatever x does."""
    tail, dy = Tail(build(name), act), draw(2, 8, 4, 3, seed=2)
    xs = [draw(2, 8, 4, 3, layout=layout), draw(2, 8, 4, 3, seed=1)]
    learned = [*(x.requires_grad_() for x in xs), *tail.parameters()]
    call = torch.compile(tail, fullgraph=True, backend="aot_eager") if compiled else tail
    with attzoo.kernels(mode):
        y = call(*xs)
    gradients = torch.autograd.grad(y, learned, dy, create_graph=not compiled)
    slopes = () if compiled else torch.autograd.grad(gradients[0].square().sum(), learned, allow_unused=True)
    return [y.detach(), *(t.detach() for t in (*gradients, *slopes) if t is not None)]


@every
@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shortcut_and_an_activation(name, act, layout):
    fitting = {"rtol": 1e-4, "atol": 1e-5}
    wanted = tailed("eager", name, act, layout)
    got = tailed("triton", name, act, layout)
    assert_close(got, wanted, **fitting)
    if (NAMES.index(name) + (act is None) + (layout == LAYOUTS[0])) % 2:   # half of them: every pair of parameters
        graph = tailed("triton", name, act, layout, compiled=True)
        assert_close(graph, wanted[: len(graph)], **fitting)


@every
def test_gradients_of_a_residual_block_by_the_kernels(name):
    block, x, shortcut, dy = build(name), *(draw(2, 8, 4, 3, seed=seed) for seed in range(3))
    found = []
    for mode, it in (("triton", block), ("eager", copy.deepcopy(block).double())):
        inputs = [t.to(next(it.parameters()).dtype).requires_grad_() for t in (x, shortcut)]
        with attzoo.kernels(mode):
            y = it(*inputs, act="relu")
        found.append([y, *torch.autograd.grad(y, [*inputs, *it.parameters()], dy.to(y.dtype))])
    for got, wanted in zip(*found, strict=True):
        assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("act", [None, "relu"])
def test_of_the_size_of_x_there_is_room_for_two_gradients_and_no_more(name, act):
    block, (x, shortcut, dy) = build(name), draw(3, 2, 8, 16, 16).unbind()
    inputs = [x.requires_grad_(), shortcut.requires_grad_()]
    with attzoo.kernels("triton"):
        y = block(*inputs, act=act)
    with Large(x) as made:
        torch.autograd.grad(y, inputs, dy)
    before = {t.untyped_storage().data_ptr() for t in (x, y, dy)}   # of which the interpreter makes views
    assert len(made.made.keys() - before) == 2


# ---- the rest of torch -----------------------------------------------------------------------------------------------


@every
def test_autocast(name):
    block = build(name).eval()
    for dtype in (torch.float32, torch.bfloat16):
        x, found = draw(2, 8, 4, 3, dtype=dtype).requires_grad_(), []
        for mode in ("triton", "eager"):
            with torch.autocast(DEVICE, torch.bfloat16), attzoo.kernels(mode):
                y = block(x)
            found.append([y, *torch.autograd.grad(y.float().sum(), [x, *block.parameters()])])
        for got, wanted in zip(*found, strict=True):
            assert got.dtype == wanted.dtype
            assert_close(got, wanted, rtol=0.03, atol=0.03 * wanted.abs().max().item())


@every
def test_everything_about_a_network_works_as_ever(name):
    block, x, dy = build(name).eval(), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    wanted = step(block, x, dy)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        got = step(twin, x, dy)
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    x.requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        got = step(block, x, dy)
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
        with attzoo.kernels("triton"):
            y = checkpoint(block, x, use_reentrant=False)
            again = torch.autograd.grad(y, [x, *block.parameters()], dy)   # runs the block a second time
    finally:
        torch.use_deterministic_algorithms(False)
    for got, (key, tensor) in zip(again, list(wanted.items())[1:], strict=False):
        assert torch.equal(got, tensor), key


def test_in_parallel(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        block, x = build("cbam"), draw(2, 8, 4, 3)
        wanted = step(block, x, torch.ones_like(x))
        with attzoo.kernels("triton"):
            DistributedDataParallel(block)(x).sum().backward()
    finally:
        dist.destroy_process_group()
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter.grad, wanted[f"gradient of {name}"])


def test_twenty_steps_of_training_reach_the_same_losses():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), build("cbam", 4), nn.ReLU(), nn.Conv2d(4, 1, 1)).to(DEVICE)
    x, target, found = draw(2, 2, 4, 4), draw(2, 1, 4, 4, seed=1), []
    for mode in ("triton", "eager"):
        twin, losses = copy.deepcopy(net), []
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            with attzoo.kernels(mode):
                loss = nn.functional.mse_loss(twin(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0][-1] < 0.9 * found[0][0]
