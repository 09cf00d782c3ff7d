"""The fused kernels give the results of the plain form in float64, for all shapes, layouts, dtypes and options."""

import copy
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from kernels import (
    DEVICE,
    DTYPES,
    GATED,
    GUARD,
    LAYOUTS,
    NAMES,
    POOLED,
    SPATIAL,
    assert_near,
    build,
    check,
    draw,
    exact,
    guarded,
    step,
    to_channels_last,
)
from kernels import tiny as tiny_tiles
from operations import Large
from strategies import cases, kernel_cases, with_fewer_taps
from torch import nn

import attzoo
from attzoo import testing
from attzoo.fast.triton import passes, passes_backward

all_blocks = pytest.mark.parametrize("name", NAMES)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")   # NumPy warns of NaN


@pytest.fixture(autouse=True)
def _guarded_memory(monkeypatch):
    """Fill the memory that kernels write to with NaN first, and assert that they do not write around it."""
    memories, empty, empty_like = [], torch.empty, torch.empty_like

    def watched(size, stride, dtype, device):
        tensor, memory = guarded(size, stride, dtype, device)
        memories.append(memory)
        return tensor

    def new(*size, **kwargs):
        if kwargs.keys() != {"dtype", "device"} or kwargs["dtype"] != torch.float32:   # not allocated by kernels
            return empty(*size, **kwargs)
        return watched(*size, empty(*size, device="meta").stride(), **kwargs)

    def guarded_empty_like(x, **kwargs):
        if kwargs or not x.is_floating_point():
            return empty_like(x, **kwargs)
        return watched(x.shape, empty_like(x, device="meta").stride(), x.dtype, x.device)

    monkeypatch.setattr(torch, "empty", new)
    monkeypatch.setattr(torch, "empty_like", guarded_empty_like)
    yield
    assert memories
    for memory in memories:
        assert memory[:GUARD].isnan().all()
        assert memory[-GUARD:].isnan().all()


# ---- same results ----------------------------------------------------------------------------------------------------


@all_blocks
def test_training_step_matches_float64(name):
    @settings(max_examples=max(settings.default.max_examples // 3, 2))
    @given(kernel_cases(name))
    def run(drawn):
        case, layout, kind, use_tiny = drawn
        block, (shape,), dtype = case.block("torch").to(DEVICE).train(), case.shapes, DTYPES[case.dtype]
        if case.spec.config().get("norm") and shape[0] * torch.Size(shape[2:]).numel() == 1:
            return   # one value per channel has no statistics
        x, dy = draw(*shape, layout=layout, kind=kind, dtype=dtype, seed=case.seed), draw(*shape, dtype=dtype, seed=1)
        with tiny_tiles() if use_tiny else nullcontext():
            check(block, x, dy, case.dtype)

    run()


@all_blocks
def test_reference_in_numpy(name):
    """Compare outputs with the NumPy reference, and gradients with finite differences, without the plain form."""

    def run_contract(contract, dtypes, examples, **kwargs):
        @settings(max_examples=examples)
        @given(cases(name, dtypes, **kwargs).map(with_fewer_taps))
        def run(case):
            with torch.device(DEVICE), attzoo.kernels("triton"):
                contract(case, "torch")

        run()

    run_contract(testing.outputs, tuple(DTYPES), 3)
    run_contract(testing.gradients, ("float32",), 2)
    run_contract(testing.training, ("float32",), 1, small=True)


LARGER = ((17, 70, 3, 5), (1, 9, 1500), (2, 300, 3), (2, 3, 23, 29))   # beyond one tile along each axis


@pytest.mark.one_of_each(share=3)
@layouts
@pytest.mark.parametrize(("number", "name"), [*product(range(len(LARGER)), NAMES)])
def test_several_tiles_and_parts_match_float64(name, layout, number):
    shape, cases = LARGER[number], attzoo.get(name, backend="torch").triton_form().CASES
    options = {"reduced_channels": shape[1]} if name in POOLED else {}
    options |= cases[number % len(cases)].arguments | ({"spatial_dims": len(shape) - 2} if name in SPATIAL else {})
    block = build(name, shape[1], **options)
    check(block, draw(*shape, layout=layout, kind="ties"), draw(*shape, seed=1))


@all_blocks
@layouts
@pytest.mark.one_of_each(share=3)
def test_steps_beyond_the_end_of_the_last_part_have_no_effect(name, layout):
    with tiny_tiles():
        check(build(name, 6), draw(3, 6, 3, 11, layout=layout), draw(3, 6, 3, 11, seed=1))


@all_blocks
def test_results_are_reproducible(name):
    block, x, dy = build(name), draw(2, 8, 5, 4), draw(2, 8, 5, 4, seed=1)
    with tiny_tiles():
        first_results, second_results = step(block, x, dy), step(block, x, dy)
    assert all(torch.equal(first_results[key], second_results[key]) for key in first_results)


@all_blocks
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_sizes_of_one_match_float64(name, dims):
    shape = (2, 1, *(1,) * dims)
    check(build(name, 1, dims=dims), draw(*shape), draw(*shape, seed=1))


# ---- memory ----------------------------------------------------------------------------------------------------------


@all_blocks
@layouts
@pytest.mark.one_of_each(share=3)
def test_input_and_gradient_may_have_any_strides(name, layout):
    block, plain_x = build(name), draw(2, 8, 4, 3)
    expected = exact(block, plain_x, dy := draw(2, 8, 4, 3, seed=1))
    wider_x = draw(2, 8, 4, 6)
    wider_x[..., ::2] = plain_x
    transposed_x = plain_x.mT.contiguous().mT
    for x in (draw(2, 8, 4, 3, layout=layout), wider_x[..., ::2], transposed_x):
        actual = step(block, x, dy if x is transposed_x else to_channels_last(dy))
        assert_near(actual, expected)
    assert step(block, draw(2, 8, 4, 3, layout=layout), dy)["y"].stride() == draw(2, 8, 4, 3, layout=layout).stride()
    per_channel = draw(1, 8, 1, 1, seed=2)
    for expanded_dy in (per_channel.expand(2, 8, 4, 3), draw(1, seed=2).expand(2, 8, 4, 3)):
        check(block, draw(2, 8, 4, 3, layout=layout), expanded_dy)


@all_blocks
def test_weights_may_have_any_strides(name):
    """A network converted to channels last has convolution weights in channels last too."""
    block, x, dy = build(name), draw(2, 8, 4, 3, layout=LAYOUTS[1]), draw(2, 8, 4, 3, seed=1)
    expected = exact(block, x, dy)
    assert_near(step(copy.deepcopy(block).to(memory_format=torch.channels_last), x, dy), expected)
    for parameter in block.parameters():
        parameter.data = parameter.data.mT.contiguous().mT if parameter.ndim > 1 else parameter.data
    assert_near(step(block, x, dy), expected)


@all_blocks
@layouts
def test_training_step_allocates_only_output_and_gradient_of_the_size_of_x(name, layout):
    block, x = build(name, 32, norm=False) if name in SPATIAL else build(name, 32), draw(2, 32, 6, 5, layout=layout)
    x, dy = x.requires_grad_(), draw(2, 32, 6, 5, layout=layout, seed=1)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    )
    with Large(x) as large_tensors, hooks:
        with attzoo.kernels("triton"):
            y = block(x)
        torch.autograd.grad(y, [x, *block.parameters()], dy)
    inputs_and_weights = {tensor.untyped_storage().data_ptr() for tensor in (x, dy, *block.parameters())}
    assert (
        sum(tensor.numel() for tensor in saved if tensor.untyped_storage().data_ptr() not in inputs_and_weights)
        <= x.numel() // 4
    )
    assert len(large_tensors.made.keys() - inputs_and_weights - {0}) == 2   # 0 is the address of empty tensors


# ---- special values --------------------------------------------------------------------------------------------------


@all_blocks
@pytest.mark.parametrize(("kind", "layout"), [("ties", LAYOUTS[0]), ("equal", LAYOUTS[1])])
def test_ties_share_the_gradient_evenly(name, kind, layout):
    x = draw(2, 8, 4, 3, layout=layout, kind=kind)
    assert x.amax((2, 3), keepdim=True).eq(x).sum((2, 3)).gt(1).any()
    check(build(name), x, draw(2, 8, 4, 3, seed=1))
    x = draw(2, 8, 4, 3, layout=layout)
    x[:, 3] = x[:, 5] = x.amax(1) + 1   # ties over channels, unless channels are scaled
    with tiny_tiles():
        check(build(name), x, draw(2, 8, 4, 3, seed=1))


def build_with_gate(name, gate):
    """Return a block with this gate, or a block that has no choice of gates."""
    return build(name, gate=gate) if name in GATED else build(name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("name", "hard"), [*((name, False) for name in NAMES), *((name, True) for name in GATED)])
def test_non_finite_input_affects_only_its_sample(name, value, hard):
    block = build_with_gate(name, "hard_sigmoid" if hard else "sigmoid")
    x, dy = draw(3, 8, 3, 4, layout=LAYOUTS[value < 0]), torch.ones(3, 8, 3, 4, device=DEVICE)
    x[1, 2, 0, 1] = value
    actual, expected = step(block.eval(), x, dy), exact(block, x, dy)
    assert not actual["y"][1].isfinite().all()
    assert actual["y"][::2].isfinite().all()
    assert actual["gradient of x"][::2].isfinite().all()
    if hard:   # relu6 has the gradient 1 for NaN on a GPU, as in the kernels, and 0 on a CPU
        assert_near({"y": actual["y"]}, {"y": expected["y"]})
        assert not any((actual[key].isfinite() & ~expected[key].isfinite()).any() for key in actual)
    else:
        assert_near(actual, expected)


@all_blocks
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_channels_and_positions_without_finite_values_match_float64(name, value):
    for index in ((0, 3), (0, slice(None), 1, 2)):
        x = draw(2, 8, 3, 4)
        x[index] = value
        check(build_with_gate(name, "sigmoid").eval(), x, draw(2, 8, 3, 4, seed=1))


@all_blocks
def test_non_finite_gradient_affects_only_its_sample(name):
    block, x = build(name).eval(), draw(3, 8, 3, 4)
    for value in (float("nan"), float("inf")):
        dy = draw(3, 8, 3, 4, seed=1)
        dy[1, 2, 0, 1] = value
        actual, expected = step(block, x, dy), exact(block, x, dy)
        if value != value:
            assert_near(actual, expected)
        # the plain form multiplies infinite gradients of maxima by 0, which gives more NaN
        assert all(torch.equal(actual[key].isfinite(), expected[key].isfinite()) for key in actual)


@all_blocks
def test_sums_beyond_the_range_of_float16_are_finite(name):
    x = draw(2, 8, 12, 11, kind="equal", dtype=torch.float16).abs() + 600
    dy = draw(2, 8, 12, 11, dtype=torch.float16, seed=1).abs()
    assert (x * dy).sum((2, 3)).isinf().any()
    actual = check(build(name, dtype=torch.float16), x, dy / 16, "float16")
    assert all(tensor.isfinite().all() for tensor in actual.values())


# ---- parameters and statistics ---------------------------------------------------------------------------------------


@all_blocks
@pytest.mark.parametrize("frozen", ["everything", "first", "input"])
def test_frozen_parameters_and_inputs_get_no_gradient(name, frozen):
    block, x, dy = build(name), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    if frozen == "input":
        with attzoo.kernels("triton"):
            y = block(x)
        gradients = torch.autograd.grad(y, list(block.parameters()), dy)
        expected = exact(build(name), x, dy)
        names = [name for name, _ in block.named_parameters()]
        assert_near(dict(zip(names, gradients, strict=True)), {name: expected[f"gradient of {name}"] for name in names})
        return
    for parameter in list(block.parameters())[: None if frozen == "everything" else 1]:
        parameter.requires_grad_(False)
    check(block, x, dy)


@all_blocks
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_equals_the_output_in_training(name, mode):
    block, x = build(name).eval(), draw(2, 8, 4, 3)
    with mode(), attzoo.kernels("triton"):
        y = block(x)
    assert not y.requires_grad
    assert torch.equal(y, step(block, x, x)["y"])
    x.requires_grad_()
    with attzoo.kernels("triton"):
        assert not block.requires_grad_(False)(x.detach()).requires_grad


@pytest.mark.parametrize(("name", "change"), [
    ("cbam", {"momentum": 0.3}), ("spatial_attention", {"momentum": None}),
    ("spatial_attention", {"track_running_stats": False}),
])   # fmt: skip
def test_running_statistics_match_plain_form(name, change):
    """Two steps in training mode and one in eval mode, one after the other."""
    block = build(name)
    norm = (block.spatial if name == "cbam" else block).norm
    for key, value in change.items():
        setattr(norm, key, value)
    block64 = copy.deepcopy(block).double()
    for turn in range(3):
        block.train(turn < 2)
        block64.train(turn < 2)
        x, dy = draw(2, 8, 4, 3, seed=turn), draw(2, 8, 4, 3, seed=turn + 5)
        assert_near(step(block, x, dy), step(block64, x.double(), dy.double(), mode="eager"))
        with torch.no_grad():
            with attzoo.kernels("triton"):
                block(x)
            with attzoo.kernels("eager"):
                block64(x.double())
    assert norm.num_batches_tracked == (0 if "track_running_stats" in change else 2)


@pytest.mark.parametrize("name", SPATIAL)
def test_norm_without_running_statistics_matches_float64(name):
    block, x, dy = build(name), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    part = block.spatial if name == "cbam" else block
    part.norm = nn.BatchNorm2d(1, track_running_stats=False).to(DEVICE)
    check(block, x, dy)
    check(block.eval(), x, dy)


@pytest.mark.parametrize("name", SPATIAL)
def test_norm_in_training_raises_for_one_value(name):
    with attzoo.kernels("triton"), pytest.raises(ValueError, match="more than 1 value per channel"):
        build(name)(draw(1, 8, 1, 1))


@all_blocks
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch_matches_plain_form(name, training):
    block, x = build(name).train(training), draw(0, 8, 4, 3)
    expected = step(block, x, x, mode="eager")
    actual = step(block, x, x)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key].nan_to_num(7), expected[key].nan_to_num(7)) for key in actual)


# ---- tests of the checks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "module", "kernel"), [
    ("se", passes, "scale"), ("cbam", passes, "pool_channels"), ("eca", passes_backward, "to_input"),
])   # fmt: skip
def test_check_detects_tensors_that_are_not_written(name, module, kernel, monkeypatch):
    monkeypatch.setattr(module, kernel, lambda *args, **kwargs: None)
    with pytest.raises(AssertionError):
        check(build(name).eval(), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1))
