"""The attention gate's fast form for CPUs gives the same results as its plain form."""

import copy
from itertools import product

import pytest
import torch
from gates import LAYOUTS, NEVER, assert_same, forced, gate, gate_with_norm, plain_output
from hypothesis import given
from hypothesis import strategies as st
from samples import SAMPLES
from strategies import cases, cheap
from torch import nn
from torch.testing import assert_close

from attzoo.blocks.attention_gate import cpu as fast

layouts = st.sampled_from(list(LAYOUTS))
gates = cases("attention_gate", dtypes=("float64",))


# ---- same results ----------------------------------------------------------------------------------------------------


def relevant_strides(x):
    """Return the strides of axes longer than 1; the other strides have no effect."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
@cheap
@given(gates, layouts, st.sampled_from([5, 1, 40, 1 << 13]))
def test_inference_matches_plain_form(layout, case, g_layout, tile):
    block = case.block("torch").eval()
    x, g = map(torch.from_numpy, case.inputs())
    x, g = LAYOUTS[layout](x), LAYOUTS[g_layout](g)
    original = x.clone(), g.clone()
    expected = plain_output(block, x, g)
    with forced(tile=tile) as calls:
        actual = block(x, g)
    assert_same(actual, expected)
    assert relevant_strides(actual) == relevant_strides(expected)
    assert torch.equal(x, original[0])
    assert torch.equal(g, original[1])
    is_dense = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
    assert calls["gated"] == (is_dense and set(case.spec.strides) == {1})


@pytest.mark.case23
@pytest.mark.case24
@pytest.mark.case26
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("interpolation", "align_corners"), [("linear", False), ("linear", True), ("nearest", False)])
@torch.no_grad()
def test_resampling_matches_plain_form(dims, interpolation, align_corners):
    options = {"interpolation": interpolation, "align_corners": align_corners, "spatial_dims": dims}
    block, _ = gate_with_norm(**options)
    x = torch.randn(2, 6, *(7, 4, 5)[:dims], dtype=torch.float64)
    for size in ((3, 2, 3), (1, 1, 1), (9, 5, 7), (7, 2, 9)):
        g = torch.randn(2, 4, *size[:dims], dtype=torch.float64)
        for layout in ("contiguous", "channels last"):
            xs = [LAYOUTS[layout](x), LAYOUTS[layout](g)]
            expected = plain_output(block, *xs)
            with forced() as calls:
                assert_same(block(*xs), expected)
            assert calls["gated"] == 1


@pytest.mark.parametrize("options", [*product([True, False], repeat=3)], ids=str)
@torch.no_grad()
def test_options_match_plain_form(options):
    block, xs = gate(**dict(zip(("norm", "skip_bias", "output_transform"), options, strict=True)))
    expected = plain_output(block, *xs)
    with forced() as calls:
        assert_same(block(*xs), expected)
    assert calls["gated"] == 1


@pytest.mark.case63
@torch.no_grad()
def test_number_of_threads_does_not_change_results():
    block, xs = gate_with_norm()
    expected, threads = plain_output(block, *xs), torch.get_num_threads()
    try:
        for number in (2, 3):
            torch.set_num_threads(number)
            with forced():
                assert_same(block(*xs), expected)
    finally:
        torch.set_num_threads(threads)


def step(block, xs, cotangent):
    """Return results of a training step of a copy of the block: output, gradients and buffers, by the layer's name."""
    block, xs = copy.deepcopy(block), [x.clone().requires_grad_() for x in xs]
    y = block(*xs)
    leaves = {name: parameter for name, parameter in block.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(y, [*xs, *leaves.values()], cotangent)
    results = {"output": [y.detach()], "inputs": list(gradients[: len(xs)])}
    for name, gradient in zip(leaves, gradients[len(xs) :], strict=True):
        results.setdefault(name.rpartition(".")[0], []).append(gradient)
    return results | {name: [buffer] for name, buffer in block.named_buffers()}


def assert_same_step(actual, expected):
    """Compare results of `step`, relative to the largest value of each layer.

    The gradient of a bias before a batch norm is 0. Its rounding errors are those of terms as large as the gradient of
    the layer's weight.
    """
    assert actual.keys() == expected.keys()
    for name, tensors in expected.items():
        assert_same(flat(actual[name]), flat(tensors), 1e-11)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


@cheap
@given(gates, layouts, st.booleans(), st.sampled_from([(), ("skip",), ("gating",), ("skip", "gating", "psi")]))
def test_training_step_matches_plain_form(case, layout, training, frozen):
    """Also in eval mode, and with some frozen weights."""
    block = case.block("torch").train(training)
    for name in frozen:
        getattr(block, name).requires_grad_(False)
    xs = [LAYOUTS[layout](torch.from_numpy(x)) for x in case.inputs()]
    cotangent = torch.from_numpy(case.cotangent())
    try:
        with forced(NEVER) as plain_calls:
            expected = step(block, xs, cotangent)
    except ValueError as err:
        assert "more than 1 value per channel" in str(err)   # noqa: PT017
        return
    with forced() as calls:
        actual = step(block, xs, cotangent)
    assert_same_step(actual, expected)
    assert (calls["overwritten"], plain_calls["overwritten"], calls["gated"], plain_calls["multiplied"]) == (1, 0, 0, 0)


@pytest.mark.parametrize("sample", [name for name in SAMPLES if name.startswith("attention_gate")])
def test_second_derivatives_are_correct(sample):
    block, xs = gate(sample)
    block.train()
    with forced() as calls:
        xs = [x.requires_grad_() for x in xs]
        assert torch.autograd.gradgradcheck(block, xs, fast_mode=True)
    assert calls["overwritten"] > 0


@pytest.mark.case39
@pytest.mark.case40
@pytest.mark.case41
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_non_finite_values_propagate_as_in_plain_form(norm, value):
    block, xs = gate(norm=norm)
    for i, index in ((0, (1, 2, 3, 0)), (1, (0, 3, 2, 4))):
        changed = [x.clone() for x in xs]
        changed[i][index] = value
        expected = plain_output(block, *changed)
        assert not torch.isfinite(expected).all() or i == 1
        with forced() as calls:
            assert_close(block(*changed), expected, equal_nan=True)
        assert calls["gated"] == 1


def test_invalid_inputs_raise_the_same_errors():
    block, (x, g) = gate()
    invalid = [(x[:, :5], g), (x, g[:1]), (x[0], g), (x[0, 0, 0], g), (x.mT[0, 0, 0], g)]
    invalid += [(x, g.float()), (x.float(), g.float()), (x.long(), g), (x, None), (x.numpy(), g)]
    for inputs in invalid:
        with torch.no_grad():
            with forced(NEVER), pytest.raises((TypeError, ValueError)) as expected:
                block(*inputs)
            with forced(), pytest.raises(expected.type) as got:
                block(*inputs)
        assert str(got.value) == str(expected.value)


# ---- tiles -----------------------------------------------------------------------------------------------------------


def test_tiles_have_the_expected_sizes():
    """Several samples, or some pixels of one sample; the size is proportional to the number of threads."""
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


def test_linear_preserves_the_memory_layout():
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 5), (4, 3), (4,)))
    expected = weight @ x + bias[:, None]
    for layout in ("contiguous", "channels last"):
        x = LAYOUTS[layout](x)
        actual = fast._linear(x, weight, bias)
        assert_same(actual, expected)
        assert actual.stride() == LAYOUTS[layout](expected).stride()


@pytest.mark.parametrize("batch", [1, 2])
def test_projection_has_the_strides_of_a_convolution(batch):
    """Resampling in torch selects the layout of its output by strides, also for a batch of one."""
    weight, bias = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    g = torch.randn(batch, 3, 5, 6, dtype=torch.float64)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        g = g.to(memory_format=memory_format)
        expected = nn.functional.conv2d(g, weight[:, :, None, None], bias)
        actual = fast._projected(g, weight, bias)
        assert_same(actual, expected)
        expected, actual = (
            nn.functional.interpolate(projected, (10, 12), mode="bilinear") for projected in (expected, actual)
        )
        assert actual.stride() == expected.stride()
