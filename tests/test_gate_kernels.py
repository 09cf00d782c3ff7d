"""The attention gate's kernels give the results of its plain form in float64, for all sizes, grids, dtypes and norms.

They run on the GPU if there is one, else in Triton's interpreter. Memory that they write to is filled with NaN first.
"""

import copy
from contextlib import contextmanager, nullcontext
from itertools import combinations, product

import kernels
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import DEVICE, LAYOUTS, StepTolerance, close, distance, draw, exact, step, to_channels_last

import attzoo
from attzoo.fast import choice, tape
from attzoo.ops import numpy as numpy_ops

# isort: split
# below, because `kernels` skips this module if Triton is not available
import triton
import triton.language as tl

from attzoo.blocks.attention_gate import triton as gate_triton
from attzoo.blocks.attention_gate.kernels import backward as gate_backward
from attzoo.blocks.attention_gate.kernels import forward as gate
from attzoo.blocks.attention_gate.kernels import norms as gate_norm
from attzoo.blocks.attention_gate.kernels import projections, resize, weights
from attzoo.blocks.attention_gate.kernels.tiles import Tile
from attzoo.fast.triton import common, passes, running_stats

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NORMS = ("skip_norm", "gating_norm", "psi_norm")
pytestmark = [
    pytest.mark.usefixtures("exact_products"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),   # NumPy warns of NaN
]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Fill new tensors with NaN; those of integers with ones in all bits."""

    def filled(allocate):
        def make_and_fill(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

        return make_and_fill

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))


@contextmanager
def tiny():
    """Use tiles so small that small inputs have several tiles, blocks of channels, parts and steps per part."""

    def tile(x, F, C, centred=False):
        return Tile(gate.channels_at_once(x, F), 16, 16, 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tape, "RECORDED", {})   # recordings contain tiles
        for module in (gate, gate_backward, gate_norm):
            patch.setattr(module, "tile", tile)
        patch.setattr(gate, "max_channels", lambda x: gate.WORD)
        for module in (gate_backward, gate_norm):
            patch.setattr(module, "RESIDENT", 2)
        yield


def build(channels=6, gating=5, *, dims=2, dtype=torch.float32, training=True, seed=0, **options):
    """Return a gate with weights that preserve the variance, and random running statistics."""
    generator = torch.Generator().manual_seed(seed)
    block = attzoo.create(
        "attention_gate", channels, gating_channels=gating, spatial_dims=dims, backend="torch", **options
    )
    for parameter in block.parameters():
        parameter.data.normal_(0, max(1, parameter[0].numel()) ** -0.5, generator=generator)
    for name, buffer in block.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
    return block.to(DEVICE, dtype).train(training)


def inputs(shape, gating, grid, layout=LAYOUTS[0], dtype=torch.float32, seed=0):
    """Return x, g and a gradient of y."""
    n, _, *sizes = shape
    g = draw(n, gating, *(grid or sizes), layout=layout, dtype=dtype, seed=seed + 1)
    return draw(*shape, layout=layout, dtype=dtype, seed=seed), g, draw(*shape, dtype=dtype, seed=seed + 2)


def certain_inputs(block, *args, **kwargs):
    """Return inputs for which all relu inputs are at least 100 times as far from zero as rounding could move them."""
    for seed in range(0, 300, 3):
        inputs_and_dy = inputs(*args, **kwargs, seed=seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "RELU_UNCERTAINTY", 100 * kernels.RELU_UNCERTAINTY)
            with kernels.uncertain_relus(True) as uncertain_counts:
                exact(block, *inputs_and_dy)
        if not any(uncertain_counts):
            return inputs_and_dy
    raise AssertionError("no such inputs among 100")


def check(block, x, g, dy):
    """Compare a step by the kernels with the plain form in float64, and return its results."""
    actual = step(block, x, g, dy)
    StepTolerance(block, x, g, dy).check(actual)
    return actual


# ---- same results ----------------------------------------------------------------------------------------------------


@st.composite
def steps(draw_from):
    """Draw a gate's arguments, the shapes of x and g, their memory layout, and whether to use tiny tiles."""

    def pick(*values):
        return draw_from(st.sampled_from(values))

    dims = pick(2, 1, 3)
    sizes = [pick(5, 1, 2, 3, 4) for _ in range(dims)]
    resampling = pick("same", "linear", "corners", "nearest")
    arguments = {
        "channels": pick(6, 1, 17, 33),
        "gating": pick(5, 1, 16, 35),
        "inter_channels": pick(None, 1, 16, 33),
        "skip_bias": pick(True, False),
        "norm": pick(False, True),
        "output_transform": pick(False, False, True),
        "interpolation": "nearest" if resampling == "nearest" else "linear",
        "align_corners": resampling == "corners",
        "training": pick(True, False),
        "dims": dims,
        "dtype": pick(*DTYPES),
        "seed": pick(0, 1, 2, 3),
    }
    grid = None if resampling == "same" else [pick(2, 1, 3, 6) for _ in range(dims)]
    return arguments, (2, arguments["channels"], *sizes), grid, pick(*LAYOUTS), pick(False, True)


def test_training_step_matches_float64():
    tested, count = set(), max(settings.default.max_examples * 2 // 3, 2)

    @settings(max_examples=count)
    @given(steps())
    def run(drawn):
        arguments, shape, grid, layout, use_tiny = drawn
        xs = inputs(shape, arguments["gating"], grid, layout, arguments["dtype"], arguments["seed"])
        with tiny() if use_tiny else nullcontext():
            check(build(**arguments), *xs)
        tested.update((layout, use_tiny, arguments["dtype"], arguments["norm"] and arguments["training"]))

    run()
    assert len(tested) >= min(6, count)


@pytest.mark.parametrize(
    ("arguments", "shape", "grid"),
    [
        ({"channels": 17, "gating": 5, "inter_channels": 33, "output_transform": True, "align_corners": True,
          "dtype": torch.float16}, (2, 17, 5, 5), (2, 2)),
        ({"channels": 1, "gating": 16, "norm": True, "dims": 3, "dtype": torch.bfloat16}, (2, 1, 5, 5, 4), (6, 6, 6)),
    ],
)   # fmt: skip
def test_gradient_of_one_bias_is_as_accurate_as_in_several_eager_steps(arguments, shape, grid):
    """Cases of `pytest --thorough` in which the rounding errors of one eager step cancel by chance."""
    check(build(**arguments), *inputs(shape, arguments["gating"], grid, dtype=arguments["dtype"]))


@pytest.mark.parametrize(
    ("channels", "gating", "inter_channels", "norm", "layout"),
    [(70, 130, 5, False, LAYOUTS[0]), (35, 20, 70, True, LAYOUTS[1])],
)
def test_several_tiles_and_sign_words_match_float64(channels, gating, inter_channels, norm, layout):
    block = build(channels, gating, inter_channels=inter_channels, norm=norm)
    check(block, *inputs((2, channels, 7, 11), gating, (4, 3), layout))
    with tiny():
        check(block, *inputs((2, channels, 5, 4), gating, None, layout))


@pytest.mark.parametrize(("inter_channels", "norm"), [(128, False), (129, True)])
def test_inner_channels_at_and_above_the_maximum_of_a_tile_match_float64(inter_channels, norm):
    check(build(3, 4, inter_channels=inter_channels, skip_bias=False, norm=norm), *inputs((1, 3, 3, 3), 4, (2, 2)))


@pytest.mark.parametrize("names", [names for n in range(3) for names in combinations(NORMS, n)])
def test_any_subset_of_norms_may_use_running_statistics(names):
    block = build(norm=True)
    for name in names:
        getattr(block, name).eval()
    block.psi_norm.momentum = block.gating_norm.momentum = None
    check(block, *inputs((2, 6, 3, 4), 5, (2, 3)))


def test_norm_without_running_statistics_uses_those_of_the_batch():
    block = build(norm=True, training=False)
    block.gating_norm.running_mean = block.gating_norm.running_var = None
    check(block, *inputs((2, 6, 3, 4), 5, None))


def test_norm_without_eps_matches_float64():
    block = build(norm=True, training=False)   # 3 inner channels, fewer than a tile has
    for name in NORMS:
        getattr(block, name).eps = 1e-50   # 0 in float32, and positive as torch 2.11 demands
    check(block, *inputs((2, 6, 3, 4), 5, (2, 3)))


def test_variance_is_accurate_with_a_mean_far_from_zero():
    block = build(norm=True)
    x, g, dy = inputs((2, 6, 4, 5), 5, (2, 2))
    with tiny():
        check(block, x + 30, g, dy)


def test_norm_in_training_raises_for_one_value_per_channel():
    message = r"^expected more than 1 value per channel in training .*, got input of shape \(1, 5, 1, 1\), "
    with pytest.raises(ValueError, match=message):
        step(build(norm=True), *inputs((1, 6, 2, 2), 5, (1, 1)))


def test_results_are_reproducible():
    block, xs = build(20, 17, norm=True), inputs((2, 20, 5, 7), 17, (3, 3))
    with tiny():
        first_results, second_results = step(block, *xs), step(block, *xs)
    assert all(torch.equal(first_results[name], second_results[name]) for name in first_results)


@pytest.mark.skipif(not choice.INTERPRETED, reason="only the interpreter multiplies in float64")
@pytest.mark.parametrize(
    ("grid", "norm", "by_batch"), [(None, False, False), ((2, 3), True, True), ((2, 3), True, False)]
)
def test_formulas_in_float64_match_autograd(grid, norm, by_batch, monkeypatch):
    for module in (common, passes, running_stats, gate, gate_backward, gate_norm, projections, resize, weights):
        monkeypatch.setattr(module, "REAL", tl.constexpr(tl.float64))
    monkeypatch.setattr(common, "SAVED_DTYPE", torch.float64)
    monkeypatch.setattr(choice, "DTYPES", {torch.float64})
    block, xs = build(norm=norm, training=by_batch, dtype=torch.float64), inputs((2, 6, 3, 4), 5, grid)
    xs = [x.double() for x in xs]
    for name in NORMS if norm else ():
        getattr(block, name).momentum = 0.125   # kernels take options as float32, which represents this number exactly
    close(step(block, *xs), exact(block, *xs), 1e-12)


@pytest.mark.parametrize("allowed", [True, False])
def test_products_follow_the_tf32_setting_of_convolutions(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert gate.precision(torch.ones(1)) == ("tf32" if allowed else "tf32x3")
    assert gate.precision(torch.ones(1).half()) == "tf32"
    block, xs = build(20, 17, inter_channels=70), inputs((1, 20, 3, 4), 17, None)
    if allowed:
        close(step(block, *xs), exact(block, *xs), 5e-3)
    else:
        check(block, *xs)


def test_products_follow_the_newer_precision_setting_of_convolutions():
    settings = getattr(torch.backends.cudnn, "conv", None)
    if settings is None:
        pytest.skip("this PyTorch has only the older setting")
    original = settings.fp32_precision
    try:
        for name, expected in (("ieee", "tf32x3"), ("tf32", "tf32")):
            settings.fp32_precision = name
            assert gate.precision(torch.ones(1)) == expected
    finally:
        settings.fp32_precision = original


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_several_launches_are_added_before_rounding(dtype):
    """The error of the gradient of x is the same with one launch and with four."""
    block, xs = build(6, 5, inter_channels=128, dtype=dtype), inputs((2, 6, 4, 5), 5, None, dtype=dtype)
    expected, errors = exact(block, *xs)["gradient of x"], []
    for max_channels in (128, 32):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate, "max_channels", lambda x, max_channels=max_channels: max_channels)
            errors.append((step(block, *xs)["gradient of x"].double() - expected).norm())
    assert errors[1] < 1.2 * errors[0]


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_inputs_and_gradients_may_have_any_strides():
    block, (x, g, dy) = build(norm=True), inputs((2, 6, 4, 3), 5, (2, 3))
    tolerance = StepTolerance(block, x, g, dy)
    with_gaps = torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]
    transposed = x.mT.contiguous().mT
    for strided_x in (to_channels_last(x), with_gaps, transposed):
        for strided_g in (to_channels_last(g), g.transpose(0, 1).contiguous().transpose(0, 1)):
            tolerance.check(step(block, strided_x, strided_g, to_channels_last(dy)))
    assert step(block, to_channels_last(x), g, dy)["y"].stride() == to_channels_last(x).stride()
    check(block, x, g, draw(2, 6, 1, 1).expand(2, 6, 4, 3))


def test_weights_may_have_any_strides():
    block, xs = build(6, 5), inputs((2, 6, 4, 3), 5, None)
    tolerance = StepTolerance(block, *xs)
    for conv in (block.skip, block.gating):
        conv.weight.data = conv.weight.data.transpose(0, 1).contiguous().transpose(0, 1)
    tolerance.check(step(block, *xs))


@pytest.mark.parametrize("norm", [False, True])
def test_no_tensor_of_inner_channels_is_saved(norm):
    block, (x, g, _) = build(32, 32, inter_channels=64, norm=norm, training=False), inputs((2, 32, 4, 5), 32, (2, 2))
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    )
    with hooks, attzoo.kernels("triton"):
        block(x.requires_grad_(), g.requires_grad_())
    inputs_and_weights = {tensor.data_ptr() for tensor in (x, g, *block.state_dict().values())}
    elements = sum(tensor.numel() for tensor in saved if tensor.data_ptr() not in inputs_and_weights)
    assert elements == 2 * 4 * 5 * (1 + 64 // 32)   # alpha and bits


def test_inference_saves_no_tensors(monkeypatch):
    allocated = []

    def outputs(*args):
        allocated.extend(gate_triton.outputs(*args))
        return allocated

    monkeypatch.setattr(gate_triton.KERNELS, "outputs", outputs)
    block, (x, g, dy) = build(norm=True, training=False), inputs((2, 6, 4, 3), 5, None)
    with attzoo.kernels("triton"), torch.no_grad():
        y = block(x, g)
    StepTolerance(block, x, g, dy).check({"y": y})
    assert sum(tensor.numel() for tensor in allocated[1:]) == 0


def test_empty_batch_is_computed_without_norm_and_raises_with_norm():
    x, g, dy = inputs((0, 6, 4, 3), 5, (2, 2))
    close(step(build(), x, g, dy), exact(build(), x, g, dy), 0)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="needs a batch of at least 1 sample, got 0"):
        build(norm=True)(x, g)


def test_untracked_running_statistics_do_not_change():
    block = build(norm=True)
    block.gating_norm.track_running_stats = False
    check(block, *inputs((2, 6, 4, 3), 5, None))


# ---- special values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [None, (2, 2)])
@pytest.mark.parametrize("changed", ["x", "g"])
def test_nan_affects_only_its_positions(changed, grid):
    block, (x, g, dy) = build(), inputs((3, 6, 5, 4), 5, grid)
    (x if changed == "x" else g)[1, 2, 1, 1] = float("nan")
    actual = check(block, x, g, dy)
    assert 0 < actual["y"].isnan().sum() < actual["y"].numel() / 2


def test_relu_inputs_that_are_all_zero_or_all_negative_match_float64():
    block, (x, g, dy) = build(), inputs((2, 6, 3, 4), 5, None)
    block.skip.weight.data[0], block.gating.weight.data[0] = 0, 0
    block.skip.bias.data[0] = block.gating.bias.data[0] = 0
    block.gating.bias.data[1] = -100
    check(block, x, g, dy)


# ---- grids -----------------------------------------------------------------------------------------------------------


@triton.jit
def weights_kernel(
    weights, source, target, TARGET_COUNT: tl.constexpr, TAPS: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    BQ: tl.constexpr,
):   # fmt: skip
    """Write the weights of source positions at target positions, (source, target)."""
    q = tl.arange(0, BQ)
    start = resize.first_target(q, source, target, TAPS, CORNERS, WIDE)
    for j in range(TARGET_COUNT):
        weight = resize.source_weight(start + j, q, source, target, TAPS, CORNERS, WIDE)
        tl.store(weights + q * target + start + j, weight, (q < source) & (start + j < target))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("resampling", ["linear", "corners", "nearest"])
def test_adjoint_of_resampling_has_the_weights_of_resampling(resampling, wide):
    corners = resampling == "corners"
    for source, target in product((1, 2, 3, 5, 8), (1, 2, 4, 7, 16)):
        expected = np.zeros((source, target))
        if resampling == "nearest":
            expected[numpy_ops.nearest(source, target), np.arange(target)] = 1
        else:
            low, high, fraction = numpy_ops.taps(source, target, corners)
            np.add.at(expected, (low, np.arange(target)), 1 - fraction)
            np.add.at(expected, (high, np.arange(target)), fraction)
        tap_weights = torch.zeros(source, target, device=DEVICE)
        taps = 1 if resampling == "nearest" or source == target else 2
        count = resize._target_count(source, target, taps, corners)
        weights_kernel[(1,)](tap_weights, source, target, count, taps, corners, wide, 8)
        assert np.allclose(tap_weights.cpu().numpy(), expected, atol=1e-6), (source, target)


def test_long_axes_use_64_bit_arithmetic():
    assert not resize.grids((1 << 14,), (1 << 15,), "linear", False).options["WIDE"]
    assert resize.grids((1 << 16,), (1 << 17,), "linear", False).options["WIDE"]


# ---- autograd and graphs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [False, True])
def test_second_derivatives_match_plain_form(transform, monkeypatch):
    block = build(norm=True, output_transform=transform)
    inputs_and_dy = certain_inputs(block, (2, 6, 3, 2), 5, (2, 1))

    def double_backward(block, x, g, dy, mode="triton"):
        copied = copy.deepcopy(block)
        x, g = x.detach().requires_grad_(), g.detach().requires_grad_()
        with attzoo.kernels(mode):
            y = copied(x, g)
        leaves = [x, g, *copied.parameters()]
        first_gradients = torch.autograd.grad(y, leaves, dy, create_graph=True)
        loss = sum(gradient.square().sum() for gradient in first_gradients)
        second_gradients = enumerate(torch.autograd.grad(loss, leaves, allow_unused=True))
        return {i: d for i, d in second_gradients if d is not None} | dict(copied.named_buffers())

    monkeypatch.setattr(kernels, "step", double_backward)
    tolerance = StepTolerance(block, *inputs_and_dy)
    # the last norm has few values, so that rounding the inputs changes the results: allow for that change
    perturbed = [tensor * (1 + torch.finfo().eps * torch.randn_like(tensor).sign()) for tensor in inputs_and_dy]
    for name, t in double_backward(block, *perturbed, mode="eager").items():
        tolerance.flips[name] += distance(t, tolerance.expected[name])
    tolerance.check(double_backward(block, *inputs_and_dy))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("norm", [False, True])
def test_torch_compile_matches_eager_kernels(norm):
    block, (x, g, dy) = build(norm=norm), inputs((2, 6, 3, 4), 5, (2, 2))
    expected = step(block, x, g, dy)
    copied = copy.deepcopy(block)
    graph = torch.compile(copied, fullgraph=True, backend="aot_eager")
    x, g = x.requires_grad_(), g.requires_grad_()
    with attzoo.kernels("triton"):
        y = graph(x, g)
    gradients = torch.autograd.grad(y, [x, g, *copied.parameters()], dy)
    names = [f"gradient of {name}" for name in ("x", "g", *dict(copied.named_parameters()))]
    close({"y": y, **dict(zip(names, gradients, strict=True)), **dict(copied.named_buffers())}, expected, 1e-6)


def test_operator_passes_opcheck():
    block, (x, g, _) = build(norm=True, training=False), inputs((1, 6, 2, 3), 5, (1, 2))
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gate_triton, "KERNELS", lambda block, *args, **kwargs: calls.append(args) or gate_triton.outputs(*args)
        )
        gate_triton.fused(block, x.requires_grad_(), g.requires_grad_())
    torch.library.opcheck(gate_triton.KERNELS.operator, calls[0], test_utils=("test_schema", "test_faketensor"))


# ---- calls that the kernels reject -----------------------------------------------------------------------------------


def stride_of_two():
    """Return a gate with stride 2 and the expected reason."""
    return build(stride=2), "the kernels need stride 1, got \\(2, 2\\)"


def layer_of_other_size():
    """Return a gate with a layer of another size and the expected reason."""
    block = build()
    block.psi = torch.nn.Conv2d(5, 1, 1)
    return block.to(DEVICE), "layers of the gate have other sizes"


def norm_of_other_size():
    """Return a gate with a norm of another size and the expected reason."""
    block = build(norm=True)
    block.skip_norm = torch.nn.BatchNorm2d(2)
    return block.to(DEVICE), "layers of the gate have other sizes"


@pytest.mark.parametrize("case", [stride_of_two, layer_of_other_size, norm_of_other_size])
def test_unsupported_gate_raises_or_uses_the_plain_form(case, monkeypatch):
    block, reason = case()
    x, g, _ = inputs((2, 6, 4, 4), 5, None)
    message = rf'^kernels\("triton"\) requires the fused kernels of AttentionGate, but {reason}'
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=message):
        block(x, g)
    monkeypatch.setattr(choice, "has_recorded_win", lambda kind, x: True)
    monkeypatch.delattr(gate_triton, "fused")
    has_plain_error = "sizes" in reason
    error = pytest.raises(RuntimeError, match=r"(channels|elements)") if has_plain_error else nullcontext()
    with attzoo.kernels("auto"), error:
        block(x, g)


def test_hook_on_a_projection_raises():
    block, (x, g, _) = build(), inputs((2, 6, 4, 4), 5, None)
    block.skip.register_forward_hook(lambda *args: None)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="a layer of the block has a hook"):
        block(x, g)


def test_autocast_preserves_the_dtype_of_inputs():
    block, (x, g, dy) = build(), inputs((2, 6, 4, 4), 5, (2, 2))
    expected = exact(block, x, g, dy)
    with torch.autocast(DEVICE, torch.bfloat16):
        actual = step(block, x.bfloat16(), g.bfloat16(), dy.bfloat16())
        float32_results = step(block, x, g, dy)
    assert actual["y"].dtype == actual["gradient of x"].dtype == torch.bfloat16
    assert actual["gradient of skip.weight"].dtype == torch.float32
    close(actual, expected, 6e-2)
    close(float32_results, expected, 2e-5)


# ---- tests of the tolerance ------------------------------------------------------------------------------------------


def test_yardstick_rejects_wrong_results():
    block = build()
    inputs_and_dy = certain_inputs(block, (2, 6, 3, 4), 5, (2, 2))
    tolerance, actual = StepTolerance(block, *inputs_and_dy), step(block, *inputs_and_dy)
    tolerance.check(actual)
    assert not any(tolerance.flips.values())
    for name, tensor in actual.items():
        with pytest.raises(AssertionError, match=f"^{name} is off by"):
            tolerance.check(actual | {name: tensor * (1 + 1e-4)})


def test_yardstick_allows_sign_changes_within_rounding_only():
    block, (x, g, dy) = build(), inputs((1, 6, 2, 2), 5, None)
    block.skip.weight.data[0], block.gating.weight.data[0] = 0, 0
    block.gating.bias.data[0] = 0
    block.psi.weight.data[0, 0] = 3
    for bias, allowed in ((1e-8, True), (1e-3, False)):
        block.skip.bias.data[0] = bias
        tolerance = StepTolerance(block, x, g, dy)
        assert any(tolerance.flips.values()) == allowed
        block.skip.bias.data[0] = -bias   # the relu input changes its sign
        with nullcontext() if allowed else pytest.raises(AssertionError, match="is off by"):
            tolerance.check(step(block, x, g, dy))
