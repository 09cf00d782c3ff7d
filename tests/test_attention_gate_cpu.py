"""The gate's way over a CPU gives what its plain form gives, is taken where it should be, and nowhere else."""

import copy
from contextlib import contextmanager, nullcontext
from itertools import product
from math import ceil
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operations import Operations
from samples import SAMPLES
from strategies import cases
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.testing import assert_close

import attzoo
from attzoo.blocks.attention_gate import torch as body
from attzoo.blocks.attention_gate import torch_cpu as fast

NEVER = 1 << 62
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "gaps": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],
    "another order": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}
layouts = st.sampled_from(list(LAYOUTS))
gates = cases("attention_gate", dtypes=("float64",))


@contextmanager
def forced(few=0, tile=5):
    """Inside, tensors of `few` numbers and more go the fast way; tells, when asked, how often each form was taken."""
    taken = {"gated": 0, "plain": 0, "overwritten": 0, "multiplied": 0}

    def count(key, function, when=lambda result: True):
        def counted(*args):
            result = function(*args)
            taken[key] += when(result)
            return result

        return counted

    overwrites = count("overwritten", fast.overwrites, when=bool)
    multiplies = count("multiplied", fast.multiplies, when=bool)
    plain = count("plain", fast.folds, when=lambda folds: not folds)
    new = {"folds": plain, "overwrites": overwrites, "multiplies": multiplies, "gated": count("gated", fast.gated)}
    with patch.multiple(fast, FEW=few, TILE=tile, **new):
        yield taken


def gate(sample="attention_gate", dtype=torch.float64, **changes):
    """A gate of SAMPLES in eval mode with statistics away from their start, and inputs for it."""
    torch.manual_seed(0)
    sample = SAMPLES[sample]
    block = attzoo.create(sample.block, **sample.config | changes, backend="torch").eval().to(dtype)
    for name, buffer in block.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return block, [torch.from_numpy(x).to(dtype) for x in sample.arrays()]


def normed(**changes):
    return gate(norm=True, **changes)


def plainly(block, *xs):
    with forced(NEVER):
        return block(*xs)


def close(got, wanted, digits=1e-12):
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    assert_close(got, wanted, rtol=0, atol=digits * scale)


# ---- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
@given(gates, layouts, st.sampled_from([5, 1, 40, 1 << 13]))
def test_inference(layout, case, of_g, tile):
    block = case.block("torch").eval()
    x, g = map(torch.from_numpy, case.inputs())
    x, g = LAYOUTS[layout](x), LAYOUTS[of_g](g)
    before = x.clone(), g.clone()
    wanted = plainly(block, x, g)
    with forced(tile=tile) as taken:
        got = block(x, g)
    close(got, wanted)
    assert got.stride() == wanted.stride()
    assert torch.equal(x, before[0])
    assert torch.equal(g, before[1])
    dense = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
    assert taken["gated"] == (dense and set(case.spec.strides) == {1})


@pytest.mark.case23
@pytest.mark.case24
@pytest.mark.case26
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("interpolation", "align_corners"), [("linear", False), ("linear", True), ("nearest", False)])
@torch.no_grad()
def test_resampling(dims, interpolation, align_corners):
    options = {"interpolation": interpolation, "align_corners": align_corners, "spatial_dims": dims}
    block, _ = normed(**options)
    x = torch.randn(2, 6, *(7, 4, 5)[:dims], dtype=torch.float64)
    for size in ((3, 2, 3), (1, 1, 1), (9, 5, 7), (7, 2, 9)):
        g = torch.randn(2, 4, *size[:dims], dtype=torch.float64)
        for layout in ("contiguous", "channels last"):
            xs = [LAYOUTS[layout](x), LAYOUTS[layout](g)]
            wanted = plainly(block, *xs)
            with forced() as taken:
                close(block(*xs), wanted)
            assert taken["gated"] == 1


@pytest.mark.parametrize("options", [*product([True, False], repeat=3)], ids=str)
@torch.no_grad()
def test_options(options):
    block, xs = gate(**dict(zip(("norm", "skip_bias", "output_transform"), options, strict=True)))
    wanted = plainly(block, *xs)
    with forced() as taken:
        close(block(*xs), wanted)
    assert taken["gated"] == 1


@pytest.mark.case63
@torch.no_grad()
def test_threads():
    block, xs = normed()
    wanted, threads = plainly(block, *xs), torch.get_num_threads()
    try:
        for number in (2, 3):
            torch.set_num_threads(number)
            with forced():
                close(block(*xs), wanted)
    finally:
        torch.set_num_threads(threads)


def step(block, xs, cotangent):
    """Output, slopes and what is remembered of the batch, of a copy."""
    block, xs = copy.deepcopy(block), [x.clone().requires_grad_() for x in xs]
    y = block(*xs)
    wanted = [*xs, *(p for p in block.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, wanted, cotangent), *block.buffers()]


@given(gates, layouts, st.booleans(), st.sampled_from([(), ("skip",), ("gating",), ("skip", "gating", "psi")]))
def test_training(case, layout, training, frozen):
    """In eval mode too, and with some weights at rest; to the bit where no product of matrices adds up in its order."""
    block = case.block("torch").train(training)
    for name in frozen:
        getattr(block, name).requires_grad_(False)
    xs = [LAYOUTS[layout](torch.from_numpy(x)) for x in case.inputs()]
    cotangent = torch.from_numpy(case.cotangent())
    try:
        with forced(NEVER) as never:
            wanted = step(block, xs, cotangent)
    except ValueError as err:
        assert "more than 1 value per channel" in str(err)   # noqa: PT017
        return
    with forced() as taken:
        got = step(block, xs, cotangent)
    for a, b in zip(got, wanted, strict=True):
        close(a, b, 1e-11 if taken["multiplied"] else 0)
    assert (taken["overwritten"], never["overwritten"], taken["gated"], never["multiplied"]) == (1, 0, 0, 0)


@pytest.mark.parametrize("sample", [name for name in SAMPLES if name.startswith("attention_gate")])
def test_second_slopes(sample):
    block, xs = gate(sample)
    block.train()
    with forced() as taken:
        xs = [x.requires_grad_() for x in xs]
        assert torch.autograd.gradgradcheck(block, xs, fast_mode=True)
    assert taken["overwritten"] > 0


@pytest.mark.case39
@pytest.mark.case40
@pytest.mark.case41
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_what_is_not_finite_goes_where_it_went(norm, value):
    block, xs = gate(norm=norm)
    for i, at in ((0, (1, 2, 3, 0)), (1, (0, 3, 2, 4))):
        sick = [x.clone() for x in xs]
        sick[i][at] = value
        wanted = plainly(block, *sick)
        assert not torch.isfinite(wanted).all() or i == 1
        with forced() as taken:
            assert_close(block(*sick), wanted, equal_nan=True)
        assert taken["gated"] == 1


def test_refusals_are_the_same():
    block, (x, g) = gate()
    wrong = [(x[:, :5], g), (x, g[:1]), (x[0], g), (x[0, 0, 0], g), (x.mT[0, 0, 0], g)]
    wrong += [(x, g.float()), (x.float(), g.float()), (x.long(), g), (x, None), (x.numpy(), g)]
    for inputs in wrong:
        with torch.no_grad():
            with forced(NEVER), pytest.raises((TypeError, ValueError)) as wanted:
                block(*inputs)
            with forced(), pytest.raises(wanted.type) as got:
                block(*inputs)
        assert str(got.value) == str(wanted.value)


# ---- tiles -----------------------------------------------------------------------------------------------------------


def test_tiles_are_of_a_size():
    """Of a few samples or of some pixels of one; more threads take more at a time."""
    threads = torch.get_num_threads()
    x = torch.arange(3 * 2 * 12).reshape(3, 2, 4, 3)
    try:
        for number, tile, sizes in (
            (1, 5, [(1, 2, 5), (1, 2, 5), (1, 2, 2)] * 3),
            (1, 12, [(1, 2, 12)] * 3),
            (1, 30, [(2, 2, 12), (1, 2, 12)]),
            (2, 12, [(2, 2, 12), (1, 2, 12)]),
        ):
            torch.set_num_threads(number)
            with forced(tile=tile):
                tiles = list(fast._tiles(x))
            assert [tuple(part.shape) for part in tiles] == sizes
            assert torch.equal(torch.cat([part[:, 0].flatten() for part in tiles]), x[:, 0].flatten())
            assert all(part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for part in tiles)
    finally:
        torch.set_num_threads(threads)


def test_what_is_between_is_laid_out_as_x():
    x, w, b = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 5), (4, 3), (4,)))
    wanted = w @ x + b[:, None]
    for layout in ("contiguous", "channels last"):
        x = LAYOUTS[layout](x)
        got = fast._linear(x, w, b)
        close(got, wanted)
        assert got.stride() == LAYOUTS[layout](wanted).stride()


@pytest.mark.parametrize("batch", [1, 2])
def test_resampling_keeps_channels_last(batch):
    """Torch asks the strides what to do, those of a batch of one too, and else copies what it has resampled."""
    w, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    g = torch.randn(batch, 3, 5, 6, dtype=torch.float64)
    for form in (torch.contiguous_format, torch.channels_last):
        g = g.to(memory_format=form)
        wanted = nn.functional.conv2d(g, w[:, :, None, None], b)
        got = fast._projected(g, w, b)
        close(got, wanted)
        wanted, got = (nn.functional.interpolate(p, (10, 12), mode="bilinear") for p in (wanted, got))
        assert got.stride() == wanted.stride()


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
    for model in (net, net.fuse()):
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
    close(got, wanted, 1e-12 if change == BY_GRADIENT else 0)
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
    loud = Louder(**SAMPLES["attention_gate"].config, norm=True).double().eval()
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_is_not_eager_plain_and_exact_goes_the_plain_way(way, grad):
    block, xs = normed()
    with nullcontext() if grad else torch.no_grad():
        with forced(NEVER):
            wanted = way(copy.deepcopy(block), *xs)
        with forced() as taken:
            got = way(block, *xs)
    assert torch.equal(got, wanted)
    assert (taken["gated"], taken["overwritten"]) == (0, 0)
    torch.compiler.reset()
