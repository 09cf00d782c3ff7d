"""Tensors that hooks, modes, checkpoints and autograd receive from PyTorch blocks and U-Nets are never overwritten."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from operations import SaveCalls, SaveOperations, assert_unchanged, save_copy, saving_hook
from test_unet_torch import every_net, gradients, input_of, net
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import attzoo
from attzoo.ops.activations import torch as activations

# ---- the U-Net ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@every_net
def test_unet_does_not_overwrite_tensors_of_hooks(name, training):
    model, x, saved = net(name).train(training), input_of(name), []
    expected = copy.deepcopy(model)(x)
    for module in model.modules():
        if module is not model:
            module.register_forward_hook(saving_hook(saved))
    with torch.set_grad_enabled(training):
        y = model(x)
    assert_unchanged(saved)
    assert torch.equal(y, expected)


def test_unet_with_folded_norms_does_not_overwrite_tensors_of_hooks():
    """Folded norms are identities, which return the output of the convolution."""
    for layer in ("conv1", "norm1"):
        model, saved = net().fold_norms(), []
        getattr(model.encoder[0], layer).register_forward_hook(saving_hook(saved))
        model(input_of("leejunhyun"))
        assert_unchanged(saved)


BACKWARD_HOOKS = ("full_backward_hook", "full_backward_pre_hook")


@pytest.mark.parametrize("hook", BACKWARD_HOOKS)
@every_net
def test_backward_hooks_run_and_do_not_change_gradients(name, hook):
    model, x, called_paths = net(name, "float64").train(), input_of(name).double().requires_grad_(), set()
    expected = gradients(copy.deepcopy(model), x)
    for path, module in model.named_modules():
        getattr(module, f"register_{hook}")(lambda module, *grads, path=path: called_paths.add(path))
    actual = gradients(model, x)
    lists = (nn.ModuleList, nn.ModuleDict)
    called = {path for path, module in model.named_modules() if not isinstance(module, lists)}
    assert called - {"gating"} <= called_paths   # the output of "gating" may be unused and have no gradient
    for key, gradient in expected.items():
        assert_close(actual[key], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("hook_type", ["forward_hook", *BACKWARD_HOOKS[:1]])
def test_global_hooks_do_not_change_gradients(hook_type):
    model, x, saved = net().train(), input_of("leejunhyun").requires_grad_(), []
    hook = saving_hook(saved) if hook_type == "forward_hook" else lambda module, inner, outer: saved.append(inner * 2)
    expected = gradients(copy.deepcopy(model), x)
    handle = getattr(nn.modules.module, f"register_module_{hook_type}")(hook)
    try:
        actual = gradients(model, x)
    finally:
        handle.remove()
    if hook_type == "forward_hook":
        assert_unchanged(saved)
    assert len(saved) > 20
    assert all(torch.equal(actual[key], gradient) for key, gradient in expected.items())


class Tanh(nn.Module):
    """An activation instead of a norm; its gradient depends on its output."""

    def forward(self, x):
        return torch.tanh(x)


class IdentityConv(nn.Conv2d):
    """A convolution that returns its input."""

    def forward(self, x):
        return x


def with_tanh(unit):
    """Replace the first norm by an activation."""
    unit.norm1 = Tanh()


def with_identity(unit):
    """Replace the second convolution and norm by identities."""
    unit.conv2, unit.norm2 = nn.Identity(), nn.Identity()


def with_subclass(unit):
    """Replace the second convolution by one of a subclass, and its norm by the identity."""
    unit.conv2, unit.norm2 = IdentityConv(4, 4, 1), nn.Identity()


def with_replaced_forward(unit):
    """Replace the forward method of the second convolution."""
    unit.conv2, unit.norm2 = nn.Conv2d(4, 4, 1), nn.Identity()
    unit.conv2.forward = lambda x: x


@pytest.mark.parametrize("change", [with_tanh, with_identity, with_subclass, with_replaced_forward])
def test_output_of_a_replaced_layer_is_not_overwritten(change):
    unit = net("leejunhyun", "float64").train().encoder[0]
    change(unit)
    x, saved = input_of("leejunhyun").double().requires_grad_(), []
    unit.conv2.register_forward_pre_hook(lambda module, args: save_copy(saved, args[0]))
    actual = torch.autograd.grad(unit(x).square().sum(), [x, unit.conv1.weight])
    assert_unchanged(saved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "may_overwrite", lambda *tensors: False)
        expected = torch.autograd.grad(unit(x).square().sum(), [x, unit.conv1.weight])
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("mode", [SaveCalls, SaveOperations])
def test_unet_does_not_overwrite_tensors_of_modes(mode):
    model, x = net().eval(), input_of("leejunhyun")
    expected = model(x)
    with mode() as recorder:
        y = model(x)
    assert_unchanged(recorder.saved)
    assert torch.equal(y, expected)


def test_checkpoint_may_save_every_operation_of_a_unet():
    model, x = net("leejunhyun", "float64").eval(), input_of("leejunhyun").double().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)

    def save_all(context, operation, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE

    contexts = partial(create_selective_checkpoint_contexts, save_all)
    y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    assert_close(torch.autograd.grad(y.square().sum(), x)[0], expected, rtol=1e-10, atol=1e-10)


def test_unet_does_not_overwrite_tensors_of_saved_tensors_hooks():
    """With these hooks, autograd does not check the versions of saved tensors."""
    model, x, saved = net("leejunhyun", "float64").train(), input_of("leejunhyun").double(), []
    expected = gradients(copy.deepcopy(model), x)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: save_copy(saved, tensor) or tensor, lambda tensor: tensor
    ):
        actual = gradients(model, x)
    buffers = {b.data_ptr() for b in model.buffers()}   # updated in training
    assert_unchanged([(tensor, copy) for tensor, copy in saved if tensor.data_ptr() not in buffers])
    assert all(torch.equal(actual[key], gradient) for key, gradient in expected.items())


@pytest.mark.parametrize("context", [nullcontext, lambda: torch.device("cpu")], ids=["plain", "device"])
def test_relu_is_in_place_if_its_input_is_not_needed(context, monkeypatch):
    calls, relu_ = [], torch.relu_
    monkeypatch.setattr(torch, "relu_", lambda x: calls.append(1) or relu_(x))
    with context():
        net().train()(input_of("leejunhyun"))
    assert len(calls) == 12


# ---- blocks ------------------------------------------------------------------------------------------------

every_block = pytest.mark.parametrize("name", attzoo.names())
sizes = pytest.mark.parametrize("size", [6, 400], ids=["small", "large"])   # large inputs use the form for CPUs


def block_of(name):
    """Return a block for 8 channels."""
    return attzoo.info(name).create(8, backend="torch")


def arguments_of(name, size, act="relu"):
    """Return x with a gradient, a shortcut and an activation for a block with one input; x and g for the gate."""
    torch.manual_seed(0)
    x, gating = torch.randn(2, 2, 8, size, size).unbind()   # two samples, for batch norms of means over space
    return (x.requires_grad_(), gating, act) if attzoo.info(name).residual else (x, gating)


@sizes
@every_block
def test_block_does_not_overwrite_tensors_of_hooks(name, size):
    for grad in (True, False):
        block, xs, saved = block_of(name), arguments_of(name, size), []
        for module in block.modules():
            module.register_forward_hook(saving_hook(saved))
            module.register_forward_pre_hook(
                lambda module, args, saved=saved: [save_copy(saved, x) for x in args] and None
            )
        with torch.set_grad_enabled(grad):
            y = block(*xs)
        if grad:
            y.square().sum().backward()
        assert_unchanged(saved)


@sizes
@every_block
@pytest.mark.parametrize("mode", [SaveCalls, SaveOperations])
def test_block_does_not_overwrite_tensors_of_modes(mode, name, size):
    block, xs = block_of(name).eval(), arguments_of(name, size)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            with mode() as recorder:
                y = block(*xs)
            assert_close(y, block(*xs))
        assert_unchanged(recorder.saved)


SAVED_OPERATIONS = {
    "everything": lambda name: True,
    "products": lambda name: any(product in name for product in ("mm", "conv")),
    "others": lambda name: not any(product in name for product in ("mm", "conv")),
}


@pytest.mark.parametrize("operations", SAVED_OPERATIONS)
@every_block
@pytest.mark.one_of_each(share=3)
def test_checkpoint_may_save_operations_of_a_block(name, operations):
    block, (x, *others) = block_of(name), arguments_of(name, 400)
    block.train(not list(block.buffers()))   # torch refuses to save tensors that a batch norm updates

    def policy(context, operation, *args, **kwargs):
        must_save = SAVED_OPERATIONS[operations](str(operation))
        return CheckpointPolicy.MUST_SAVE if must_save else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    x.requires_grad_()
    y = checkpoint(block, x, *others, use_reentrant=False, context_fn=contexts)
    expected = torch.autograd.grad(block(x, *others).square().sum(), [x, *block.parameters()])
    gradients = torch.autograd.grad(y.square().sum(), [x, *block.parameters()])
    for gradient, reference in zip(gradients, expected, strict=True):
        assert_close(gradient, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))
