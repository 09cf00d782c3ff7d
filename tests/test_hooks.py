"""Who listens to the layers of torch blocks and of the U-Net keeps what they returned: hooks, modes, saved tensors."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from operations import KeepsCalls, KeepsOperations, assert_untouched, hook_into, keep
from test_unet_torch import every_net, net, picture, slopes
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import attzoo
from attzoo.unet import torch as body

# ---- the U-Net ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@every_net
def test_what_a_hook_was_given_stays_as_it_was(name, training):
    model, x, kept = net(name).train(training), picture(name), []
    wanted = copy.deepcopy(model)(x)
    for module in model.modules():
        if module is not model:
            module.register_forward_hook(hook_into(kept))
    with torch.set_grad_enabled(training):
        y = model(x)
    assert_untouched(kept)
    assert torch.equal(y, wanted)


def test_what_a_hook_was_given_stays_as_it_was_in_a_fused_net():
    """The norms are identities there, which return what the convolutions do."""
    for part in ("conv1", "norm1"):
        model, kept = net().fold_norms(), []
        getattr(model.encoder[0], part).register_forward_hook(hook_into(kept))
        model(picture("leejunhyun"))
        assert_untouched(kept)


BACKWARD = ("full_backward_hook", "full_backward_pre_hook")


@pytest.mark.parametrize("how", BACKWARD)
@every_net
def test_backward_hooks_run_and_change_nothing(name, how):
    model, x, ran = net(name, "float64").train(), picture(name).double().requires_grad_(), set()
    wanted = slopes(copy.deepcopy(model), x)
    for path, module in model.named_modules():
        getattr(module, f"register_{how}")(lambda module, *gradients, path=path: ran.add(path))
    found = slopes(model, x)
    lists = (nn.ModuleList, nn.ModuleDict)
    called = {path for path, module in model.named_modules() if not isinstance(module, lists)}
    assert called - {"gating"} <= ran   # whose output nothing may take, and then it has no gradient
    for key, gradient in wanted.items():
        assert_close(found[key], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("how", ["forward_hook", *BACKWARD[:1]])
def test_hooks_of_all_modules(how):
    model, x, kept = net().train(), picture("leejunhyun").requires_grad_(), []
    hook = hook_into(kept) if how == "forward_hook" else lambda module, inner, outer: kept.append(inner * 2)
    wanted = slopes(copy.deepcopy(model), x)
    handle = getattr(nn.modules.module, f"register_module_{how}")(hook)
    try:
        found = slopes(model, x)
    finally:
        handle.remove()
    if how == "forward_hook":
        assert_untouched(kept)
    assert len(kept) > 20
    assert all(torch.equal(found[key], gradient) for key, gradient in wanted.items())


class Shift(nn.Module):
    """An activation in the place of a norm, that needs for its gradient what it returned."""

    def forward(self, x):
        return torch.tanh(x)


class Same(nn.Conv2d):
    """A convolution that returns its input."""

    def forward(self, x):
        return x


def with_tanh(first):
    first.norm1 = Shift()


def with_no_convolution(first):
    first.conv2, first.norm2 = nn.Identity(), nn.Identity()


def with_a_subclass(first):
    first.conv2, first.norm2 = Same(4, 4, 1), nn.Identity()


def with_a_method_of_its_own(first):
    first.conv2, first.norm2 = nn.Conv2d(4, 4, 1), nn.Identity()
    first.conv2.forward = lambda x: x


@pytest.mark.parametrize("change", [with_tanh, with_no_convolution, with_a_subclass, with_a_method_of_its_own])
def test_what_stands_in_the_place_of_a_layer_may_need_what_it_returned(change):
    first = net("leejunhyun", "float64").train().encoder[0]
    change(first)
    x, kept = picture("leejunhyun").double().requires_grad_(), []
    first.conv2.register_forward_pre_hook(lambda module, args: keep(kept, args[0]))
    got = torch.autograd.grad(first(x).square().sum(), [x, first.conv1.weight])
    assert_untouched(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body.ops, "may_overwrite", lambda *tensors: False)
        wanted = torch.autograd.grad(first(x).square().sum(), [x, first.conv1.weight])
    assert all(map(torch.equal, got, wanted))


@pytest.mark.parametrize("mode", [KeepsCalls, KeepsOperations])
def test_what_a_mode_was_given_stays_as_it_was(mode):
    model, x = net().eval(), picture("leejunhyun")
    wanted = model(x)
    with mode() as seen:
        y = model(x)
    assert_untouched(seen.kept)
    assert torch.equal(y, wanted)


def test_a_checkpoint_may_keep_every_operation_of_a_unet():
    model, x = net("leejunhyun", "float64").eval(), picture("leejunhyun").double().requires_grad_()
    (wanted,) = torch.autograd.grad(model(x).square().sum(), x)

    def keep_all(context, operation, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE

    contexts = partial(create_selective_checkpoint_contexts, keep_all)
    y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    assert_close(torch.autograd.grad(y.square().sum(), x)[0], wanted, rtol=1e-10, atol=1e-10)


def test_saved_tensors_may_be_kept_as_they_are():
    """Autograd's own check of versions is off while hooks for saved tensors hold them."""
    model, x, kept = net("leejunhyun", "float64").train(), picture("leejunhyun").double(), []
    wanted = slopes(copy.deepcopy(model), x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: keep(kept, t) or t, lambda t: t):
        found = slopes(model, x)
    buffers = {b.data_ptr() for b in model.buffers()}   # which move
    assert_untouched([(t, then) for t, then in kept if t.data_ptr() not in buffers])
    assert all(torch.equal(found[key], gradient) for key, gradient in wanted.items())


@pytest.mark.parametrize("around", [nullcontext, lambda: torch.device("cpu")], ids=["plain", "device"])
def test_a_relu_is_written_over_what_nobody_needs(around, monkeypatch):
    calls, real = [], torch.relu_
    monkeypatch.setattr(torch, "relu_", lambda x: calls.append(1) or real(x))
    with around():
        net().train()(picture("leejunhyun"))
    assert len(calls) == 12


# ---- blocks ------------------------------------------------------------------------------------------------

every_block = pytest.mark.parametrize("name", attzoo.names())
sizes = pytest.mark.parametrize("size", [6, 400], ids=["small", "large"])   # which takes the CPU's own passes


def block_of(name):
    return attzoo.info(name).create(8, backend="torch")


def call(name, size, act="relu"):
    """A block, and inputs for it: with a shortcut and an activation where it takes them."""
    torch.manual_seed(0)
    x, other = torch.randn(2, 1, 8, size, size).unbind()
    return (x.requires_grad_(), other, act) if attzoo.info(name).residual else (x, other)


@sizes
@every_block
def test_what_a_hook_in_a_block_was_given_stays_as_it_was(name, size):
    for grad in (True, False):
        block, xs, kept = block_of(name), call(name, size), []
        for module in block.modules():
            module.register_forward_hook(hook_into(kept))
            module.register_forward_pre_hook(lambda module, args, kept=kept: [keep(kept, x) for x in args] and None)
        with torch.set_grad_enabled(grad):
            y = block(*xs)
        if grad:
            y.square().sum().backward()
        assert_untouched(kept)


@sizes
@every_block
@pytest.mark.parametrize("mode", [KeepsCalls, KeepsOperations])
def test_what_a_mode_was_given_in_a_block_stays_as_it_was(mode, name, size):
    block, xs = block_of(name).eval(), call(name, size)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            with mode() as seen:
                y = block(*xs)
            assert_close(y, block(*xs))
        assert_untouched(seen.kept)


KEPT = {
    "everything": lambda name: True,
    "products": lambda name: any(part in name for part in ("mm", "conv")),
    "the rest": lambda name: not any(part in name for part in ("mm", "conv")),
}


@pytest.mark.parametrize("what", KEPT)
@every_block
def test_a_checkpoint_may_keep_operations_of_a_block(name, what):
    block, (x, *others) = block_of(name), call(name, 400)

    def policy(context, operation, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if KEPT[what](str(operation)) else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    x.requires_grad_()
    y = checkpoint(block, x, *others, use_reentrant=False, context_fn=contexts)
    wanted = torch.autograd.grad(block(x, *others).square().sum(), [x, *block.parameters()])
    for got, each in zip(torch.autograd.grad(y.square().sum(), [x, *block.parameters()]), wanted, strict=True):
        assert_close(got, each, rtol=1e-4, atol=1e-5 * float(each.abs().max()))
