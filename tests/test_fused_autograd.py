"""Fused kernels in autograd, residual blocks, autocast, checkpoints and training."""

import copy
import pickle
from itertools import product

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

pytestmark = pytest.mark.usefixtures("default_kernels")
all_blocks = pytest.mark.parametrize("name", NAMES)


# ---- autograd --------------------------------------------------------------------------------------------------------


def double_backward(block, x, dy, mode):
    """Return the gradients, those of the sum of their squares, and the buffers of a copy of the block, by name."""
    block, x, dy = copy.deepcopy(block), x.detach().requires_grad_(), dy.detach().requires_grad_()
    learned = dict(block.named_parameters())
    with attzoo.kernels(mode):
        y = block(x)
    first = torch.autograd.grad(y, [x, *learned.values()], dy, create_graph=True)
    loss = sum(g.square().sum() for g in first)
    second = torch.autograd.grad(loss, [x, dy, *learned.values()], materialize_grads=True)
    names = [f"first {name}" for name in ("x", *learned)] + [f"second {name}" for name in ("x", "dy", *learned)]
    return dict(zip(names, (g.detach() for g in (*first, *second)), strict=True)) | dict(block.named_buffers())


@all_blocks
def test_second_derivatives_match_float64(name):
    block, x, dy = build(name), draw(2, 8, 4, 3, layout=LAYOUTS[1]), draw(2, 8, 4, 3, seed=1)
    expected = double_backward(block.double(), x.double(), dy.double(), "eager")
    actual = double_backward(block.float(), x, dy, "triton")
    for key, reference in expected.items():
        atol = 1e-5 * reference.abs().max().clamp(min=1).item()
        assert_close(actual[key].double(), reference.double(), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", SPATIAL)
def test_second_derivatives_use_the_mode_of_the_forward_pass(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    gradients = []
    for mode in ("triton", "eager"):
        with attzoo.kernels(mode):
            y = block.train()(x)
        block.eval()
        gradients.append(torch.autograd.grad(y.square().sum(), x, create_graph=True)[0])
        assert not any(part.training for part in block.modules())
    assert_close(*gradients, rtol=1e-5, atol=1e-5)


@all_blocks
def test_batched_gradients_equal_separate_gradients(name):
    block, x, dys = build(name), draw(2, 8, 4, 3).requires_grad_(), draw(3, 2, 8, 4, 3, seed=1)
    leaves = [x, *block.parameters()]
    with attzoo.kernels("triton"):
        y = block(x)
    batched = torch.autograd.grad(y, leaves, dys, is_grads_batched=True, retain_graph=True)
    separate = [torch.autograd.grad(y, leaves, dy, retain_graph=True) for dy in dys]
    for actual, expected in zip(batched, zip(*separate, strict=True), strict=True):
        assert_close(actual, torch.stack(expected), rtol=1e-5, atol=1e-5)


@all_blocks
def test_retained_graph_can_be_used_again(name):
    block, x, dy = build(name), draw(2, 8, 4, 3).requires_grad_(), draw(2, 8, 4, 3, seed=1)
    with attzoo.kernels("triton"):
        y = block(x)
    first_gradient = torch.autograd.grad(y, x, dy, retain_graph=True)
    torch.autograd.grad(y.sum(), [*block.parameters()], retain_graph=True)
    assert torch.equal(*first_gradient, *torch.autograd.grad(y, x, dy))


@all_blocks
def test_input_changed_before_backward_raises(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    z = x * 1
    with attzoo.kernels("triton"):
        y = block(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@all_blocks
def test_functional_call_matches_plain_form(name):
    block, x = build(name).eval(), draw(2, 8, 4, 3)
    weights = {key: (parameter.detach() * 2).requires_grad_() for key, parameter in block.named_parameters()}
    gradients = []
    for mode in ("triton", "eager"):
        with attzoo.kernels(mode):
            y = torch.func.functional_call(block, weights, x)
        gradients.append(torch.autograd.grad(y.square().sum(), [*weights.values()]))
    assert_close(*gradients, rtol=1e-4, atol=1e-5)


# ---- at the end of a residual block ----------------------------------------------------------------------------------


class Tail(nn.Module):
    """The end of a residual block: attention, a shortcut and an activation."""

    def __init__(self, block, act):
        super().__init__()
        self.block, self.act = block, act

    def forward(self, x, shortcut):
        return self.block(x, shortcut, self.act)


def tail_results(mode, name, act, layout, *, compiled=False):
    """Return y, its gradients and, unless compiled, second derivatives; the shortcut is always channels first."""
    tail, dy = Tail(build(name), act), draw(2, 8, 4, 3, seed=2)
    xs = [draw(2, 8, 4, 3, layout=layout), draw(2, 8, 4, 3, seed=1)]
    learned = [*(x.requires_grad_() for x in xs), *tail.parameters()]
    call = torch.compile(tail, fullgraph=True, backend="aot_eager") if compiled else tail
    with attzoo.kernels(mode):
        y = call(*xs)
    gradients = torch.autograd.grad(y, learned, dy, create_graph=not compiled)
    second_gradients = () if compiled else torch.autograd.grad(gradients[0].square().sum(), learned, allow_unused=True)
    return [y.detach(), *(tensor.detach() for tensor in (*gradients, *second_gradients) if tensor is not None)]


@pytest.mark.one_of_each
@pytest.mark.parametrize(("compiled", "name"), [*product([False, True], NAMES)])
@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shortcut_and_activation_match_plain_form(name, act, layout, compiled):
    expected = tail_results("eager", name, act, layout)
    actual = tail_results("triton", name, act, layout, compiled=compiled)
    assert_close(actual, expected[: len(actual)] if compiled else expected, rtol=1e-4, atol=1e-5)


@all_blocks
def test_gradients_of_a_residual_block_match_float64(name):
    block, x, shortcut, dy = build(name), *(draw(2, 8, 4, 3, seed=seed) for seed in range(3))
    results = []
    for mode, module in (("triton", block), ("eager", copy.deepcopy(block).double())):
        inputs = [tensor.to(next(module.parameters()).dtype).requires_grad_() for tensor in (x, shortcut)]
        with attzoo.kernels(mode):
            y = module(*inputs, act="relu")
        results.append([y, *torch.autograd.grad(y, [*inputs, *module.parameters()], dy.to(y.dtype))])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


@all_blocks
@pytest.mark.parametrize("act", [None, "relu"])
def test_backward_allocates_only_two_gradients_of_the_size_of_x(name, act):
    block, (x, shortcut, dy) = build(name), draw(3, 2, 8, 16, 16).unbind()
    inputs = [x.requires_grad_(), shortcut.requires_grad_()]
    with attzoo.kernels("triton"):
        y = block(*inputs, act=act)
    with Large(x) as observer:
        torch.autograd.grad(y, inputs, dy)
    existing = {tensor.untyped_storage().data_ptr() for tensor in (x, y, dy)}   # the interpreter makes views of these
    assert len(observer.made.keys() - existing) == 2


# ---- other features of torch -----------------------------------------------------------------------------------------


@all_blocks
def test_autocast_matches_plain_form(name):
    block = build(name).eval()
    for dtype in (torch.float32, torch.bfloat16):
        x, results = draw(2, 8, 4, 3, dtype=dtype).requires_grad_(), []
        for mode in ("triton", "eager"):
            with torch.autocast(DEVICE, torch.bfloat16), attzoo.kernels(mode):
                y = block(x)
            results.append([y, *torch.autograd.grad(y.float().sum(), [x, *block.parameters()])])
        for actual, expected in zip(*results, strict=True):
            assert actual.dtype == expected.dtype
            assert_close(actual, expected, rtol=0.03, atol=0.03 * expected.abs().max().item())


@all_blocks
def test_copies_deterministic_algorithms_and_checkpoints_give_the_same_results(name):
    block, x, dy = build(name).eval(), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    expected = step(block, x, dy)
    for copied in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        actual = step(copied, x, dy)
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
    x.requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        actual = step(block, x, dy)
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
        with attzoo.kernels("triton"):
            y = checkpoint(block, x, use_reentrant=False)
            checkpoint_gradients = torch.autograd.grad(y, [x, *block.parameters()], dy)   # runs the forward pass again
    finally:
        torch.use_deterministic_algorithms(False)
    for actual, (key, tensor) in zip(checkpoint_gradients, list(expected.items())[1:], strict=False):
        assert torch.equal(actual, tensor), key


def test_distributed_data_parallel_has_the_same_gradients(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        block, x = build("cbam"), draw(2, 8, 4, 3)
        expected = step(block, x, torch.ones_like(x))
        with attzoo.kernels("triton"):
            DistributedDataParallel(block)(x).sum().backward()
    finally:
        dist.destroy_process_group()
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter.grad, expected[f"gradient of {name}"])


def test_twenty_training_steps_have_the_same_losses():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), build("cbam", 4), nn.ReLU(), nn.Conv2d(4, 1, 1)).to(DEVICE)
    x, target, losses_by_mode = draw(2, 2, 4, 4), draw(2, 1, 4, 4, seed=1), []
    for mode in ("triton", "eager"):
        copied, losses = copy.deepcopy(net), []
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.1, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            with attzoo.kernels(mode):
                loss = nn.functional.mse_loss(copied(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        losses_by_mode.append(losses)
    fused_losses, eager_losses = losses_by_mode
    assert fused_losses == pytest.approx(eager_losses, rel=1e-3)
    assert fused_losses[-1] < 0.9 * fused_losses[0]
