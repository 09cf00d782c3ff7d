"""The gate's way over a CPU gives what its plain form gives."""

import copy
from itertools import product

import pytest
import torch
from gates import LAYOUTS, NEVER, close, forced, gate, normed, plainly
from hypothesis import given
from hypothesis import strategies as st
from samples import SAMPLES
from strategies import cases
from torch import nn
from torch.testing import assert_close

from attzoo.blocks.attention_gate import cpu as fast

layouts = st.sampled_from(list(LAYOUTS))
gates = cases("attention_gate", dtypes=("float64",))


# ---- the same numbers ------------------------------------------------------------------------------------------------


def steps(x):
    """The strides of the axes that have several positions: those of others mean nothing."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


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
    assert steps(got) == steps(wanted)
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
    """In eval mode too, and with some weights at rest."""
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
        close(a, b, 1e-11)
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
