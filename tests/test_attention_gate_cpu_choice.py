"""The attention gate uses its fast form for CPUs only where that form is valid and faster."""

import copy
from contextlib import nullcontext
from math import ceil

import pytest
import torch
from gates import LAYOUTS, NEVER, assert_same, forced, gate, gate_with_norm, plain_output
from operations import Operations
from samples import SAMPLES
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune

import attzoo
from attzoo.blocks.attention_gate import cpu as fast
from attzoo.blocks.attention_gate import torch as gate_torch

# ---- calls that use the fast form ------------------------------------------------------------------------------------


def gate_of_size(size, **changes):
    """Return a float32 gate and two inputs of 16 channels and size x size pixels."""
    changes = {"channels": 16, "gating_channels": 16, "norm": True} | changes
    block, _ = gate(dtype=torch.float32, **changes)
    return block, torch.randn(2, 1, 16, size, size).unbind()


@torch.no_grad()
def test_large_inputs_use_the_fast_form_and_small_inputs_the_plain_form():
    side = ceil((fast.FEW / 16) ** 0.5)
    for size, large in ((side, True), (side - 1, False)):
        block, xs = gate_of_size(size)
        with Operations() as operations:
            block(*xs)
        assert (operations.names.count("baddbmm_") > 0) is large
        assert ("convolution" in operations.names) is not large
        assert any("batch_norm" in name for name in operations.names) is not large


@pytest.mark.parametrize(
    ("layout", "grad", "multiplied"), [("contiguous", True, 3), ("contiguous", False, 0), ("channels last", True, 0)]
)
def test_training_computes_contiguous_projections_as_matrix_products(layout, grad, multiplied):
    block, xs = gate_of_size(ceil((fast.FEW / 4) ** 0.5))
    with Operations() as operations, torch.set_grad_enabled(grad):
        block.train()(*map(LAYOUTS[layout], xs))
    assert (operations.names.count("baddbmm"), operations.names.count("convolution")) == (multiplied, 3 - multiplied)


def test_matrix_products_need_at_least_as_many_pixels_as_channels():
    conv = nn.Conv2d(6, 4, 1).double()
    for pixels, multiplied in ((5, False), (6, True), (7, True)):
        with forced():
            assert fast.multiplies(conv, torch.zeros(2, 6, pixels, 1, dtype=torch.float64)) is multiplied


def test_training_overwrites_the_normed_skip_projection():
    side = ceil((fast.FEW / 8) ** 0.5)
    block, xs = gate_of_size(side)
    with Operations() as operations:
        block.train()(*xs)
    assert "add_" in operations.names and "relu_" in operations.names   # noqa: PT018
    assert "baddbmm_" not in operations.names


@pytest.mark.case50
@torch.no_grad()
def test_unet_uses_the_fast_form():
    net = attzoo.create("unet", 3, 1, (4, 6, 8), backend="torch", variant="leejunhyun").double().eval()
    x = torch.randn(2, 3, 20, 17, dtype=torch.float64)
    expected = plain_output(net, x)
    for model in (net, net.fold_norms()):
        with forced() as calls:
            assert_same(model(x), expected, 1e-11)
        assert calls == {"gated": 2, "plain": 0, "overwritten": 0, "multiplied": 0}


def test_unet_with_checkpointing_has_the_same_gradients():
    net = attzoo.create("unet", 3, 1, (4, 6, 8), backend="torch", variant="leejunhyun").double()
    x, gradients = torch.randn(2, 3, 12, 9, dtype=torch.float64), []
    for min_elements, checkpointing in ((NEVER, False), (0, False), (0, True)):
        copied = copy.deepcopy(net)
        copied.set_grad_checkpointing(checkpointing)
        with forced(min_elements) as calls:
            gradients.append(torch.autograd.grad(copied(x).square().sum(), list(copied.parameters())))
        assert calls["overwritten"] == (2 if min_elements == 0 else 0)
        assert (calls["multiplied"] > 0) == (min_elements == 0)
    plain, *fast_gradients = gradients
    for computed in fast_gradients:
        for expected, actual in zip(plain, computed, strict=True):
            assert_same(actual, expected, 1e-11)


# ---- calls that use the plain form -----------------------------------------------------------------------------------


class TensorSubclass(torch.Tensor):
    """A subclass, which could override any operation."""


class DoubledGate(gate_torch.AttentionGate):
    """A gate with twice the coefficients."""

    def attention(self, x, g):
        return 2 * super().attention(x, g)


PARTS = ("skip", "gating", "psi", "skip_norm", "gating_norm", "psi_norm")


def with_hook(part, register):
    """Return a function that registers a hook on a part of a gate."""

    def change(block):
        getattr(getattr(block, part), register)(lambda *args: None)

    return change


def with_replaced(part, create_layer):
    """Return a function that replaces a part of a gate by make(part)."""

    def change(block):
        setattr(block, part, create_layer(getattr(block, part)))

    return change


def replace_forward(block):
    """Replace the method `forward` of a gate's instance."""
    forward = block.gating.forward
    block.gating.forward = lambda g: 2 * forward(g)


def replace_attention(block):
    """Replace the method `attention` of a gate's instance."""
    attention = block.attention
    vars(block)["attention"] = lambda *xs: attention(*xs) / 2


def without_statistics(norm):
    """Return a norm without running statistics."""
    norm.running_mean = norm.running_var = None
    return norm


def other_convolution(kernel_size=1, **options):
    """Return a function that makes another convolution; the gate resamples an output of another size."""
    return lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size, **options).double()


def with_parameter_subclass(conv):
    """Make the weight of a convolution a parameter of a subclass."""
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(TensorSubclass))
    return conv


CHANGES = {
    **{f"{register} {part}": with_hook(part, register) for part in PARTS for register in (
        "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
        "register_full_backward_pre_hook",
    )},
    "weight norm": lambda block: nn.utils.parametrizations.weight_norm(block.skip),
    "pruned": lambda block: prune.l1_unstructured(block.gating, "weight", 3),
    "a forward of its own": replace_forward,
    "an attention of its own": replace_attention,
    "one norm in training": lambda block: block.gating_norm.train(),
    "training": lambda block: block.train(),
    "no running statistics": with_replaced("psi_norm", without_statistics),
    "synchronised": with_replaced("skip_norm", nn.SyncBatchNorm.convert_sync_batchnorm),
    "another norm": with_replaced("gating_norm", lambda norm: nn.GroupNorm(1, norm.num_features).double()),
    "no convolution": with_replaced("gating", lambda conv: nn.Sequential(conv)),
    "a wide convolution": with_replaced("gating", other_convolution(3)),
    "a convolution with stride": with_replaced("skip", other_convolution(stride=2)),
    "a padded convolution": with_replaced("skip", other_convolution(padding=1)),
    "a grouped convolution": with_replaced("skip", other_convolution(groups=3)),
    "a subclass of parameters": with_replaced("psi", with_parameter_subclass),
    "a part frozen": lambda block: block.requires_grad_(False).psi.requires_grad_(True),
}   # fmt: skip
NEEDS_GRADIENT = "a part frozen"


@pytest.mark.parametrize("change", CHANGES)
def test_modified_gate_uses_the_plain_form(change):
    outputs = []
    for min_elements in (NEVER, 0):
        block, xs = gate_with_norm()
        CHANGES[change](block)
        with forced(min_elements) as calls, torch.enable_grad() if change == NEEDS_GRADIENT else torch.no_grad():
            outputs.append(block(*xs).detach())
    expected, actual = outputs
    assert_same(actual, expected)
    assert (calls["plain"], calls["gated"]) == (1, 0)


@pytest.mark.parametrize("part", ["skip", "skip_norm"])
def test_output_passed_to_a_hook_is_not_overwritten(part):
    block, xs = gate_with_norm()
    saved_outputs = []
    getattr(block, part).register_forward_hook(lambda *args: saved_outputs.append((args[-1], args[-1].clone())))
    with forced() as calls:
        block(*xs).sum().backward()
    assert torch.equal(*saved_outputs[0])
    assert calls["overwritten"] == 0


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_global_module_hooks_select_the_plain_form(kind):
    block, xs = gate_with_norm()
    handle = getattr(nn.modules.module, f"register_module_{kind}_hook")(lambda *args: None)
    try:
        with forced() as calls, torch.no_grad():
            block(*xs)
        with forced():
            block(*xs)
    finally:
        handle.remove()
    assert calls == {"gated": 0, "plain": 1, "overwritten": 0, "multiplied": 0}


def test_input_is_not_overwritten_without_a_projection():
    block, (x, _) = gate_with_norm(channels=4, inter_channels=4)
    block.skip = block.skip_norm = nn.Identity()
    original = x[:, :4].clone()
    with forced() as calls:
        block(x[:, :4].contiguous(), torch.zeros(2, 4, 4, 5, dtype=x.dtype))
    x = original.clone()
    block(x, torch.ones(2, 4, 4, 5, dtype=x.dtype))
    assert torch.equal(x, original)
    assert calls["overwritten"] == 0


@pytest.mark.case54
@pytest.mark.parametrize("i", [0, 1])
def test_gradient_of_a_single_input_matches_plain_form(i):
    block, xs = gate_with_norm()
    block.requires_grad_(False)
    xs[i].requires_grad_()
    expected = torch.autograd.grad(plain_output(block, *xs).square().sum(), xs[i])
    with forced() as calls:
        actual = torch.autograd.grad(block(*xs).square().sum(), xs[i])
    assert_same(actual[0], expected[0])
    assert (calls["gated"], calls["overwritten"]) == (0, 1)
    with forced() as calls, torch.no_grad():
        block(*xs)
    assert calls["gated"] == 1


class ToDouble(nn.Module):
    """Converts its input to double precision."""

    def forward(self, x):
        return x.double()


def test_projection_of_another_dtype_is_not_overwritten():
    block, xs = gate_with_norm(dtype=torch.float32)
    block.gating_norm, block.psi, block.psi_norm = ToDouble(), block.psi.double(), block.psi_norm.double()
    with forced() as calls:
        actual = block(*xs)
    assert actual.dtype == torch.float64
    assert_same(actual.detach(), plain_output(block, *xs).detach(), 1e-6)   # earlier layers compute in float32
    assert calls["overwritten"] == 0


def test_attention_maps_record_coefficients_that_are_computed_once(monkeypatch):
    block, xs = gate_with_norm()
    expected, counts = block.attention(*xs), []
    with torch.no_grad(), forced() as calls, attzoo.attention_maps(block) as recorded:
        y = block(*xs)
    assert_same(torch.from_numpy(recorded[""]), expected.detach())
    assert_same(y, xs[0] * expected.detach())
    assert calls["gated"] == 0
    attention = gate_torch.AttentionGate.attention
    monkeypatch.setattr(gate_torch.AttentionGate, "attention", lambda *args: counts.append(1) or attention(*args))
    with torch.no_grad(), forced() as calls:
        block(*xs)
    assert (counts, calls["gated"]) == ([1], 0)


@torch.no_grad()
def test_subclass_with_its_own_attention_uses_it():
    block, xs = gate_with_norm()
    doubled = DoubledGate(**SAMPLES["attention_gate"].config).double().eval()
    doubled.load_state_dict(block.state_dict())
    with forced():
        assert_same(doubled(*xs), 2 * block(*xs))


def in_vmap(block, x, g):
    """Call a gate under vmap over both inputs."""
    return torch.func.vmap(lambda x, g: block(x[None], g[None])[0])(x, g)


def in_vmap_of_x(block, x, g):
    """Call a gate under vmap over x only."""
    return torch.func.vmap(lambda x: block(x[None], g[:1])[0])(x)


def in_jvp(block, x, g):
    """Return the derivative of a gate by torch.func.jvp."""
    return torch.func.jvp(block, (x, g), (g.new_ones(x.shape), torch.ones_like(g)))[1]


def in_dual(block, x, g):
    """Return the derivative of a gate in forward-mode differentiation."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(block(forward_ad.make_dual(x, torch.ones_like(x)), g)).tangent


def in_grad(block, x, g):
    """Return the gradient for x by torch.func.grad."""
    return torch.func.grad(lambda x: block(x, g).square().sum())(x)


def in_autocast(block, x, g):
    """Call a gate under bfloat16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return block.float()(x.float(), g.float())


def in_trace(block, x, g):
    """Call a traced gate."""
    return torch.jit.trace(block, (x, g), check_trace=False)(x, g)


def in_compile(block, x, g):
    """Call a compiled gate."""
    torch.compiler.reset()
    return torch.compile(block, backend="eager", fullgraph=True)(x, g)


def of_a_subclass(block, x, g):
    """Call a gate on a tensor of a subclass."""
    return block(x.as_subclass(TensorSubclass), g)


def in_half(block, x, g):
    """Call a gate in bfloat16."""
    return block.bfloat16()(x.bfloat16(), g.bfloat16())


def on_meta(block, x, g):
    """Call a gate on the meta device."""
    return torch.empty_like(block.to("meta")(x.to("meta"), g.to("meta")), device="cpu").zero_()


CONTEXTS = [
    in_vmap, in_vmap_of_x, in_jvp, in_dual, in_grad, in_autocast, in_trace, in_compile, of_a_subclass, in_half, on_meta
]   # fmt: skip
IN_BFLOAT16 = (in_autocast, in_half)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: context.__name__)
def test_transforms_and_other_dtypes_use_the_plain_form(context, grad):
    block, xs = gate_with_norm()
    with nullcontext() if grad else torch.no_grad():
        with forced(NEVER):
            expected = context(copy.deepcopy(block), *xs)
        with forced() as calls:
            actual = context(block, *xs)
    # with gradients, the projection of g may be a matrix product
    assert_same(actual, expected, 2.0**-7 if context in IN_BFLOAT16 else 1e-12)
    assert (calls["gated"], calls["overwritten"]) == (0, 0)
    torch.compiler.reset()
