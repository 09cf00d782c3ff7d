"""The gate's way over a CPU is taken where it should be, and nowhere else."""

import copy
from contextlib import nullcontext
from math import ceil

import pytest
import torch
from gates import LAYOUTS, NEVER, close, forced, gate, normed, plainly
from operations import Operations
from samples import SAMPLES
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune

import attzoo
from attzoo.blocks.attention_gate import cpu as fast
from attzoo.blocks.attention_gate import torch as body

# ---- where it is taken -----------------------------------------------------------------------------------------------


def ordinary(size, **changes):
    """A float32 gate and two inputs of 16 channels and so many pixels a side."""
    changes = {"channels": 16, "gating_channels": 16, "norm": True} | changes
    block, _ = gate(dtype=torch.float32, **changes)
    return block, torch.randn(2, 1, 16, size, size).unbind()


@torch.no_grad()
def test_large_inputs_go_the_fast_way_and_small_ones_do_not():
    side = ceil((fast.FEW / 16) ** 0.5)
    for size, large in ((side, True), (side - 1, False)):
        block, xs = ordinary(size)
        with Operations() as seen:
            block(*xs)
        assert (seen.names.count("baddbmm_") > 0) is large
        assert ("convolution" in seen.names) is not large
        assert any("batch_norm" in name for name in seen.names) is not large


@pytest.mark.parametrize(
    ("layout", "grad", "multiplied"), [("contiguous", True, 3), ("contiguous", False, 0), ("channels last", True, 0)]
)
def test_training_multiplies_matrices(layout, grad, multiplied):
    block, xs = ordinary(ceil((fast.FEW / 4) ** 0.5))
    with Operations() as seen, torch.set_grad_enabled(grad):
        block.train()(*map(LAYOUTS[layout], xs))
    assert (seen.names.count("baddbmm"), seen.names.count("convolution")) == (multiplied, 3 - multiplied)


def test_a_product_has_more_pixels_than_weights():
    conv = nn.Conv2d(6, 4, 1).double()
    for pixels, multiplied in ((5, False), (6, True), (7, True)):
        with forced():
            assert fast.multiplies(conv, torch.zeros(2, 6, pixels, 1, dtype=torch.float64)) is multiplied


def test_training_writes_over_what_is_not_needed():
    side = ceil((fast.FEW / 8) ** 0.5)
    block, xs = ordinary(side)
    with Operations() as seen:
        block.train()(*xs)
    assert "add_" in seen.names and "relu_" in seen.names   # noqa: PT018
    assert "baddbmm_" not in seen.names


@pytest.mark.case50
@torch.no_grad()
def test_a_unet_goes_the_fast_way():
    net = attzoo.create("unet", 3, 1, (4, 6, 8), backend="torch", variant="leejunhyun").double().eval()
    x = torch.randn(2, 3, 20, 17, dtype=torch.float64)
    wanted = plainly(net, x)
    for model in (net, net.fold_norms()):
        with forced() as taken:
            close(model(x), wanted, 1e-11)
        assert taken == {"gated": 2, "plain": 0, "overwritten": 0, "multiplied": 0}


def test_a_unet_that_computes_its_levels_again_learns_the_same():
    net = attzoo.create("unet", 3, 1, (4, 6, 8), backend="torch", variant="leejunhyun").double()
    x, slopes = torch.randn(2, 3, 12, 9, dtype=torch.float64), []
    for few, checkpointing in ((NEVER, False), (0, False), (0, True)):
        twin = copy.deepcopy(net)
        twin.set_grad_checkpointing(checkpointing)
        with forced(few) as taken:
            slopes.append(torch.autograd.grad(twin(x).square().sum(), list(twin.parameters())))
        assert taken["overwritten"] == (2 if few == 0 else 0)
        assert (taken["multiplied"] > 0) == (few == 0)
    for other in slopes[1:]:
        for a, b in zip(slopes[0], other, strict=True):
            close(b, a, 1e-11)


# ---- where it is not -------------------------------------------------------------------------------------------------


class Other(torch.Tensor):
    """A tensor that may mean something of its own by any operation."""


class Louder(body.AttentionGate):
    """A gate that attends more."""

    def attention(self, x, g):
        return 2 * super().attention(x, g)


PARTS = ("skip", "gating", "psi", "skip_norm", "gating_norm", "psi_norm")


def hooked(part, how):
    def change(block):
        getattr(getattr(block, part), how)(lambda *args: None)

    return change


def replaced(part, make):
    def change(block):
        setattr(block, part, make(getattr(block, part)))

    return change


def own_forward(block):
    forward = block.gating.forward
    block.gating.forward = lambda g: 2 * forward(g)


def own_attention(block):
    attention = block.attention
    vars(block)["attention"] = lambda *xs: attention(*xs) / 2


def without_statistics(norm):
    norm.running_mean = norm.running_var = None
    return norm


def another(kernel_size=1, **options):
    """Another convolution in the place of one; the gate resamples what others would give in other sizes."""
    return lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size, **options).double()


def strange(conv):
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(Other))
    return conv


CHANGES = {
    **{f"{how} {part}": hooked(part, how) for part in PARTS for how in (
        "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
        "register_full_backward_pre_hook",
    )},
    "weight norm": lambda block: nn.utils.parametrizations.weight_norm(block.skip),
    "pruned": lambda block: prune.l1_unstructured(block.gating, "weight", 3),
    "a forward of its own": own_forward,
    "an attention of its own": own_attention,
    "one norm in training": lambda block: block.gating_norm.train(),
    "training": lambda block: block.train(),
    "no running statistics": replaced("psi_norm", without_statistics),
    "synchronised": replaced("skip_norm", nn.SyncBatchNorm.convert_sync_batchnorm),
    "another norm": replaced("gating_norm", lambda norm: nn.GroupNorm(1, norm.num_features).double()),
    "no convolution": replaced("gating", lambda conv: nn.Sequential(conv)),
    "a wide convolution": replaced("gating", another(3)),
    "a convolution with stride": replaced("skip", another(stride=2)),
    "a padded convolution": replaced("skip", another(padding=1)),
    "a grouped convolution": replaced("skip", another(groups=3)),
    "a subclass of parameters": replaced("psi", strange),
    "a part frozen": lambda block: block.requires_grad_(False).psi.requires_grad_(True),
}   # fmt: skip
BY_GRADIENT = "a part frozen"


@pytest.mark.parametrize("change", CHANGES)
def test_a_gate_that_is_not_as_it_was_made_goes_the_plain_way(change):
    found = []
    for few in (NEVER, 0):
        block, xs = normed()
        CHANGES[change](block)
        with forced(few) as taken, torch.enable_grad() if change == BY_GRADIENT else torch.no_grad():
            found.append(block(*xs).detach())
    wanted, got = found
    close(got, wanted)
    assert (taken["plain"], taken["gated"]) == (1, 0)


@pytest.mark.parametrize("part", ["skip", "skip_norm"])
def test_what_a_hook_was_given_stays_as_it_was(part):
    block, xs = normed()
    kept = []
    getattr(block, part).register_forward_hook(lambda module, args, output: kept.append((output, output.clone())))
    with forced() as taken:
        block(*xs).sum().backward()
    assert torch.equal(*kept[0])
    assert taken["overwritten"] == 0


@pytest.mark.parametrize("how", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_on_every_module(how):
    block, xs = normed()
    handle = getattr(nn.modules.module, f"register_module_{how}_hook")(lambda *args: None)
    try:
        with forced() as taken, torch.no_grad():
            block(*xs)
        with forced():
            block(*xs)
    finally:
        handle.remove()
    assert taken == {"gated": 0, "plain": 1, "overwritten": 0, "multiplied": 0}


def test_a_projection_that_is_not_there_is_not_written_over():
    block, (x, _) = normed(channels=4, inter_channels=4)
    block.skip = block.skip_norm = nn.Identity()
    before = x[:, :4].clone()
    with forced() as taken:
        block(x[:, :4].contiguous(), torch.zeros(2, 4, 4, 5, dtype=x.dtype))
    x = before.clone()
    block(x, torch.ones(2, 4, 4, 5, dtype=x.dtype))
    assert torch.equal(x, before)
    assert taken["overwritten"] == 0


@pytest.mark.case54
@pytest.mark.parametrize("i", [0, 1])
def test_slopes_of_an_input_alone(i):
    block, xs = normed()
    block.requires_grad_(False)
    xs[i].requires_grad_()
    wanted = torch.autograd.grad(plainly(block, *xs).square().sum(), xs[i])
    with forced() as taken:
        got = torch.autograd.grad(block(*xs).square().sum(), xs[i])
    close(got[0], wanted[0])
    assert (taken["gated"], taken["overwritten"]) == (0, 1)
    with forced() as taken, torch.no_grad():
        block(*xs)
    assert taken["gated"] == 1


class Wider(nn.Module):
    """Somebody's projection in double precision."""

    def forward(self, x):
        return x.double()


def test_a_projection_of_another_precision():
    block, xs = normed(dtype=torch.float32)
    block.gating_norm, block.psi, block.psi_norm = Wider(), block.psi.double(), block.psi_norm.double()
    with forced() as taken:
        got = block(*xs)
    assert got.dtype == torch.float64
    close(got.detach(), plainly(block, *xs).detach(), 1e-6)   # what comes before is in float32
    assert taken["overwritten"] == 0


def test_maps_hear_the_coefficients_computed_once(monkeypatch):
    block, xs = normed()
    wanted, counts = block.attention(*xs), []
    with torch.no_grad(), forced() as taken, attzoo.attention_maps(block) as seen:
        y = block(*xs)
    close(torch.from_numpy(seen[""]), wanted.detach())
    close(y, xs[0] * wanted.detach())
    assert taken["gated"] == 0
    attention = body.AttentionGate.attention
    monkeypatch.setattr(body.AttentionGate, "attention", lambda *args: counts.append(1) or attention(*args))
    with torch.no_grad(), forced() as taken:
        block(*xs)
    assert (counts, taken["gated"]) == ([1], 0)


@torch.no_grad()
def test_a_subclass_with_an_attention_of_its_own():
    block, xs = normed()
    loud = Louder(**SAMPLES["attention_gate"].config).double().eval()
    loud.load_state_dict(block.state_dict())
    with forced():
        close(loud(*xs), 2 * block(*xs))


def in_vmap(block, x, g):
    return torch.func.vmap(lambda x, g: block(x[None], g[None])[0])(x, g)


def in_vmap_of_x(block, x, g):
    return torch.func.vmap(lambda x: block(x[None], g[:1])[0])(x)


def in_jvp(block, x, g):
    return torch.func.jvp(block, (x, g), (g.new_ones(x.shape), torch.ones_like(g)))[1]


def in_dual(block, x, g):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(block(forward_ad.make_dual(x, torch.ones_like(x)), g)).tangent


def in_grad(block, x, g):
    return torch.func.grad(lambda x: block(x, g).square().sum())(x)


def in_autocast(block, x, g):
    with torch.autocast("cpu", torch.bfloat16):
        return block.float()(x.float(), g.float())


def in_trace(block, x, g):
    return torch.jit.trace(block, (x, g), check_trace=False)(x, g)


def compiled(block, x, g):
    torch.compiler.reset()
    return torch.compile(block, backend="eager", fullgraph=True)(x, g)


def of_a_subclass(block, x, g):
    return block(x.as_subclass(Other), g)


def in_half(block, x, g):
    return block.bfloat16()(x.bfloat16(), g.bfloat16())


def on_meta(block, x, g):
    return torch.empty_like(block.to("meta")(x.to("meta"), g.to("meta")), device="cpu").zero_()


WAYS = [
    in_vmap, in_vmap_of_x, in_jvp, in_dual, in_grad, in_autocast, in_trace, compiled, of_a_subclass, in_half, on_meta
]   # fmt: skip
IN_BFLOAT16 = (in_autocast, in_half)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_is_not_eager_plain_and_exact_goes_the_plain_way(way, grad):
    block, xs = normed()
    with nullcontext() if grad else torch.no_grad():
        with forced(NEVER):
            wanted = way(copy.deepcopy(block), *xs)
        with forced() as taken:
            got = way(block, *xs)
    close(got, wanted, 2.0**-7 if way in IN_BFLOAT16 else 1e-12)   # with gradients, g may be multiplied by a matrix
    assert (taken["gated"], taken["overwritten"]) == (0, 0)
    torch.compiler.reset()
