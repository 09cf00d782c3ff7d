"""The attention gate's kernels give what its plain form gives in float64, whatever the sizes, grids, dtypes and norms.

They run on the GPU where there is one, else in Triton's interpreter, into memory that is full of NaN.
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
from kernels import DEVICE, LAYOUTS, Yardstick, close, distance, draw, exact, laid, step

import attzoo
from attzoo.fast import choice, tape
from attzoo.ops import numpy as meaning

# isort: split
# `kernels` has skipped this module where they cannot run
import triton
import triton.language as tl

from attzoo.blocks.attention_gate import triton as body
from attzoo.blocks.attention_gate.kernels import backward as gate_backward
from attzoo.blocks.attention_gate.kernels import forward as gate
from attzoo.blocks.attention_gate.kernels import norms as gate_norm
from attzoo.blocks.attention_gate.kernels import resize
from attzoo.blocks.attention_gate.kernels.tiles import Tile
from attzoo.fast.triton import common, passes

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NORMS = ("skip_norm", "gating_norm", "psi_norm")
pytestmark = [
    pytest.mark.usefixtures("exact_products"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),   # NumPy's, of what is not finite
]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """What kernels are given to write to holds NaN, or every bit."""
    def filled(make):
        def make_and_fill(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

        return make_and_fill

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))


@contextmanager
def tiny():
    """Tiles so small that few numbers make several tiles, blocks of channels, parts and steps of each."""
    def tile(x, F, C, centred=False):
        return Tile(gate.channels_at_once(x, F), 16, 16, 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tape, "RECORDED", {})   # with other tiles
        for module in (gate, gate_backward, gate_norm):
            patch.setattr(module, "tile", tile)
        patch.setattr(gate, "most", lambda x: gate.WORD)
        for module in (gate_backward, gate_norm):
            patch.setattr(module, "RESIDENT", 2)
        yield


def build(channels=6, gating=5, *, dims=2, dtype=torch.float32, training=True, seed=0, **options):
    """A gate whose sums have the size of their terms, and whose statistics are away from their start."""
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
    """x, g and a gradient of y."""
    n, _, *space = shape
    g = draw(n, gating, *(grid or space), layout=layout, dtype=dtype, seed=seed + 1)
    return draw(*shape, layout=layout, dtype=dtype, seed=seed), g, draw(*shape, dtype=dtype, seed=seed + 2)


def clear(block, *args, **kwargs):
    """Inputs whose sums of projections are all further from zero than rounding can turn them, a hundred times."""
    for seed in range(0, 300, 3):
        given = inputs(*args, **kwargs, seed=seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "TURN", 100 * kernels.TURN)
            with kernels.turned(True) as unclear:
                exact(block, *given)
        if not any(unclear):
            return given
    raise AssertionError("no such inputs among 100")


def check(block, x, g, dy):
    got = step(block, x, g, dy)
    Yardstick(block, x, g, dy).holds(got)
    return got


# ---- the same numbers ------------------------------------------------------------------------------------------------


@st.composite
def steps(draw_from):
    """A gate's arguments, shapes of x and g, and how they lie."""

    def pick(*values):
        return draw_from(st.sampled_from(values))

    dims = pick(2, 1, 3)
    space = [pick(5, 1, 2, 3, 4) for _ in range(dims)]
    way = pick("same", "linear", "corners", "nearest")
    arguments = {
        "channels": pick(6, 1, 17, 33),
        "gating": pick(5, 1, 16, 35),
        "inter_channels": pick(None, 1, 16, 33),
        "skip_bias": pick(True, False),
        "norm": pick(False, True),
        "output_transform": pick(False, False, True),
        "interpolation": "nearest" if way == "nearest" else "linear",
        "align_corners": way == "corners",
        "training": pick(True, False),
        "dims": dims,
        "dtype": pick(*DTYPES),
        "seed": pick(0, 1, 2, 3),
    }
    grid = None if way == "same" else [pick(2, 1, 3, 6) for _ in range(dims)]
    return arguments, (2, arguments["channels"], *space), grid, pick(*LAYOUTS), pick(False, True)


def test_a_training_step():
    seen, count = set(), max(settings.default.max_examples * 2 // 3, 2)

    @settings(max_examples=count)
    @given(steps())
    def run(it):
        arguments, shape, grid, layout, small = it
        xs = inputs(shape, arguments["gating"], grid, layout, arguments["dtype"], arguments["seed"])
        with tiny() if small else nullcontext():
            check(build(**arguments), *xs)
        seen.update((layout, small, arguments["dtype"], arguments["norm"] and arguments["training"]))

    run()
    assert len(seen) >= min(6, count)


@pytest.mark.parametrize(
    ("channels", "gating", "inter", "norm", "layout"), [(70, 130, 5, False, LAYOUTS[0]), (35, 20, 70, True, LAYOUTS[1])]
)
def test_several_tiles_and_words(channels, gating, inter, norm, layout):
    block = build(channels, gating, inter_channels=inter, norm=norm)
    check(block, *inputs((2, channels, 7, 11), gating, (4, 3), layout))
    with tiny():
        check(block, *inputs((2, channels, 5, 4), gating, None, layout))


@pytest.mark.parametrize(("inter", "norm"), [(128, False), (129, True)])
def test_as_many_inner_channels_as_a_program_takes_at_once_and_one_more(inter, norm):
    check(build(3, 4, inter_channels=inter, skip_bias=False, norm=norm), *inputs((1, 3, 3, 3), 4, (2, 2)))


@pytest.mark.parametrize("names", [names for n in range(3) for names in combinations(NORMS, n)])
def test_norms_go_by_the_batch_one_by_one(names):
    block = build(norm=True)
    for name in names:
        getattr(block, name).eval()
    block.psi_norm.momentum = None
    check(block, *inputs((2, 6, 3, 4), 5, (2, 3)))


def test_a_norm_that_tracks_nothing_goes_by_the_batch():
    block = build(norm=True, training=False)
    block.gating_norm.running_mean = block.gating_norm.running_var = None
    check(block, *inputs((2, 6, 3, 4), 5, None))


def test_a_mean_far_from_zero_leaves_the_variance_its_digits():
    block = build(norm=True)
    x, g, dy = inputs((2, 6, 4, 5), 5, (2, 2))
    with tiny():
        check(block, x + 30, g, dy)


def test_one_value_per_channel_is_refused_by_a_norm_in_training():
    message = r"^expected more than 1 value per channel in training .*, got input of shape \(1, 5, 1, 1\), "
    with pytest.raises(ValueError, match=message):
        step(build(norm=True), *inputs((1, 6, 2, 2), 5, (1, 1)))


def test_the_same_numbers_give_the_same_bits():
    block, xs = build(20, 17, norm=True), inputs((2, 20, 5, 7), 17, (3, 3))
    with tiny():
        one, two = step(block, *xs), step(block, *xs)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.skipif(not choice.INTERPRETED, reason="products of float64 are the interpreter's")
@pytest.mark.parametrize(
    ("grid", "norm", "by_batch"), [(None, False, False), ((2, 3), True, True), ((2, 3), True, False)]
)
def test_the_formulas_in_float64(grid, norm, by_batch, monkeypatch):
    for module in (common, passes, gate, gate_backward, gate_norm, resize):
        monkeypatch.setattr(module, "REAL", tl.constexpr(tl.float64))
    monkeypatch.setattr(common, "KEPT", torch.float64)
    monkeypatch.setattr(choice, "DTYPES", {torch.float64})
    block, xs = build(norm=norm, training=by_batch, dtype=torch.float64), inputs((2, 6, 3, 4), 5, grid)
    xs = [x.double() for x in xs]
    close(step(block, *xs), exact(block, *xs), 1e-12)


@pytest.mark.parametrize("allowed", [True, False])
def test_products_are_as_exact_as_convolutions_are(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert gate.precision(torch.ones(1)) == ("tf32" if allowed else "tf32x3")
    assert gate.precision(torch.ones(1).half()) == "tf32"
    block, xs = build(20, 17, inter_channels=70), inputs((1, 20, 3, 4), 17, None)
    if allowed:
        close(step(block, *xs), exact(block, *xs), 5e-3)
    else:
        check(block, *xs)


def test_products_are_as_exact_as_convolutions_are_by_the_newer_setting():
    settings = getattr(torch.backends.cudnn, "conv", None)
    if settings is None:
        pytest.skip("this PyTorch has only the older setting")
    before = settings.fp32_precision
    try:
        for name, wanted in (("ieee", "tf32x3"), ("tf32", "tf32")):
            settings.fp32_precision = name
            assert gate.precision(torch.ones(1)) == wanted
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_turns_are_added_up_before_they_are_rounded(dtype):
    """One turn or four, a gradient is off by no more."""
    block, xs = build(6, 5, inter_channels=128, dtype=dtype), inputs((2, 6, 4, 5), 5, None, dtype=dtype)
    wanted, off = exact(block, *xs)["gradient of x"], []
    for most in (128, 32):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate, "most", lambda x, most=most: most)
            off.append((step(block, *xs)["gradient of x"].double() - wanted).norm())
    assert off[1] < 1.2 * off[0]


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_inputs_and_gradients_may_lie_as_they_like():
    block, (x, g, dy) = build(norm=True), inputs((2, 6, 4, 3), 5, (2, 3))
    yardstick = Yardstick(block, x, g, dy)
    gaps = torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]
    turned = x.mT.contiguous().mT
    for there in (laid(x), gaps, turned):
        for other in (laid(g), g.transpose(0, 1).contiguous().transpose(0, 1)):
            yardstick.holds(step(block, there, other, laid(dy)))
    assert step(block, laid(x), g, dy)["y"].stride() == laid(x).stride()
    check(block, x, g, draw(2, 6, 1, 1).expand(2, 6, 4, 3))


def test_weights_may_lie_as_they_like():
    block, xs = build(6, 5), inputs((2, 6, 4, 3), 5, None)
    yardstick = Yardstick(block, *xs)
    for conv in (block.skip, block.gating):
        conv.weight.data = conv.weight.data.transpose(0, 1).contiguous().transpose(0, 1)
    yardstick.holds(step(block, *xs))


@pytest.mark.parametrize("norm", [False, True])
def test_nothing_of_the_size_of_what_is_within_is_kept(norm):
    block, (x, g, _) = build(32, 32, inter_channels=64, norm=norm, training=False), inputs((2, 32, 4, 5), 32, (2, 2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), attzoo.kernels("triton"):
        block(x.requires_grad_(), g.requires_grad_())
    known = {t.data_ptr() for t in (x, g, *block.state_dict().values())}
    numbers = sum(t.numel() for t in kept if t.data_ptr() not in known)
    assert numbers == 2 * 4 * 5 * (1 + 64 // 32) + 4 * 64 + 2   # alpha and bits, and the scales


def test_without_a_way_back_nothing_is_kept(monkeypatch):
    made = []
    monkeypatch.setattr(body.KERNELS, "outputs", lambda *args: made.extend(body.outputs(*args)) or made)
    block, (x, g, dy) = build(norm=True, training=False), inputs((2, 6, 4, 3), 5, None)
    with attzoo.kernels("triton"), torch.no_grad():
        y = block(x, g)
    Yardstick(block, x, g, dy).holds({"y": y})
    assert sum(t.numel() for t in made[1:]) == 4 * 3 + 2


def test_a_batch_of_nothing():
    x, g, dy = inputs((0, 6, 4, 3), 5, (2, 2))
    close(step(build(), x, g, dy), exact(build(), x, g, dy), 0)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="needs a batch of at least 1 sample, got 0"):
        build(norm=True)(x, g)


def test_statistics_that_are_not_tracked_stay():
    block = build(norm=True)
    block.gating_norm.track_running_stats = False
    check(block, *inputs((2, 6, 4, 3), 5, None))


# ---- what is in x and g ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [None, (2, 2)])
@pytest.mark.parametrize("where", ["x", "g"])
def test_nan_stays_where_it_is(where, grid):
    block, (x, g, dy) = build(), inputs((3, 6, 5, 4), 5, grid)
    (x if where == "x" else g)[1, 2, 1, 1] = float("nan")
    got = check(block, x, g, dy)
    assert 0 < got["y"].isnan().sum() < got["y"].numel() / 2


def test_a_relu_that_lets_nothing_or_zero_through():
    block, (x, g, dy) = build(), inputs((2, 6, 3, 4), 5, None)
    block.skip.weight.data[0], block.gating.weight.data[0] = 0, 0
    block.skip.bias.data[0] = block.gating.bias.data[0] = 0
    block.gating.bias.data[1] = -100
    check(block, x, g, dy)


# ---- grids -----------------------------------------------------------------------------------------------------------


@triton.jit
def back_kernel(
    to, old, new, REACH: tl.constexpr, TAPS: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr, BQ: tl.constexpr
):
    q = tl.arange(0, BQ)
    start = resize.first_target(q, old, new, TAPS, CORNERS, WIDE)
    for j in range(REACH):
        taken = resize.source_weight(start + j, q, old, new, TAPS, CORNERS, WIDE)
        tl.store(to + q * new + start + j, taken, (q < old) & (start + j < new))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("way", ["linear", "corners", "nearest"])
def test_every_place_that_was_read_is_found_again(way, wide):
    for old, new in product((1, 2, 3, 5, 8), (1, 2, 4, 7, 16)):
        matrix = np.zeros((old, new))
        if way == "nearest":
            matrix[meaning.nearest(old, new), np.arange(new)] = 1
        else:
            low, high, fraction = meaning.taps(old, new, way == "corners")
            np.add.at(matrix, (low, np.arange(new)), 1 - fraction)
            np.add.at(matrix, (high, np.arange(new)), fraction)
        found = torch.zeros(old, new, device=DEVICE)
        taps = 1 if way == "nearest" or old == new else 2
        reach = resize._target_count(old, new, taps, way == "corners")
        back_kernel[(1,)](found, old, new, reach, taps, way == "corners", wide, 8)
        assert np.allclose(found.cpu().numpy(), matrix, atol=1e-6), (old, new)


def test_long_axes_are_counted_in_64_bits():
    assert not resize.grids((1 << 14,), (1 << 15,), "linear", False).options["WIDE"]
    assert resize.grids((1 << 16,), (1 << 17,), "linear", False).options["WIDE"]


# ---- how torch calls them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [False, True])
def test_gradients_of_gradients_are_those_of_the_plain_form(transform, monkeypatch):
    block = build(norm=True, output_transform=transform)
    given = clear(block, (2, 6, 3, 2), 5, (2, 1))

    def twice(block, *given, mode="triton"):
        twin, (x, g, dy) = copy.deepcopy(block), given
        x, g = x.detach().requires_grad_(), g.detach().requires_grad_()
        with attzoo.kernels(mode):
            y = twin(x, g)
        wanted = [x, g, *twin.parameters()]
        once = torch.autograd.grad(y, wanted, dy, create_graph=True)
        loss = sum(d.square().sum() for d in once)
        found = enumerate(torch.autograd.grad(loss, wanted, allow_unused=True))
        return {i: d for i, d in found if d is not None} | dict(twin.named_buffers())

    monkeypatch.setattr(kernels, "step", twice)
    yardstick = Yardstick(block, *given)
    # the last norm is of few values: what a rounding of the inputs moves there belongs to the yardstick
    moved = twice(block, *(t * (1 + torch.finfo().eps * torch.randn_like(t).sign()) for t in given), mode="eager")
    for name, wanted in yardstick.wanted.items():
        yardstick.flips[name] += distance(moved[name], wanted)
    yardstick.holds(twice(block, *given))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("norm", [False, True])
def test_in_a_graph_it_is_one_operator(norm):
    block, (x, g, dy) = build(norm=norm), inputs((2, 6, 3, 4), 5, (2, 2))
    wanted = step(block, x, g, dy)
    twin = copy.deepcopy(block)
    graph = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x, g = x.requires_grad_(), g.requires_grad_()
    with attzoo.kernels("triton"):
        y = graph(x, g)
    found = torch.autograd.grad(y, [x, g, *twin.parameters()], dy)
    names = [f"gradient of {name}" for name in ("x", "g", *dict(twin.named_parameters()))]
    close({"y": y, **dict(zip(names, found, strict=True)), **dict(twin.named_buffers())}, wanted, 1e-6)


def test_the_operator_is_as_torch_has_them():
    block, (x, g, _) = build(norm=True, training=False), inputs((1, 6, 2, 3), 5, (1, 2))
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "KERNELS", lambda block, *args: given.append(args) or body.outputs(*args))
        body.fused(block, x.requires_grad_(), g.requires_grad_())
    torch.library.opcheck(body.KERNELS.operator, given[0], test_utils=("test_schema", "test_faketensor"))


# ---- when ------------------------------------------------------------------------------------------------------------


def stride_of_two():
    return build(stride=2), "its kernels need stride 1, got \\(2, 2\\)"


def other_layers():
    block = build()
    block.psi = torch.nn.Conv2d(5, 1, 1)
    return block.to(DEVICE), "its layers have other sizes"


def other_norms():
    block = build(norm=True)
    block.skip_norm = torch.nn.BatchNorm2d(2)
    return block.to(DEVICE), "its layers have other sizes"


@pytest.mark.parametrize("case", [stride_of_two, other_layers, other_norms])
def test_what_there_is_no_kernel_for(case, monkeypatch):
    block, why = case()
    x, g, _ = inputs((2, 6, 4, 4), 5, None)
    message = rf'^kernels\("triton"\) asks for a fused AttentionGate, but {why}'
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=message):
        block(x, g)
    monkeypatch.setattr(choice, "has_recorded_win", lambda kind, x: True)
    monkeypatch.delattr(body, "fused")
    its_own = pytest.raises(RuntimeError, match=r"(channels|elements)") if "sizes" in why else nullcontext()
    with attzoo.kernels("auto"), its_own:   # the plain form, which may have an error of its own
        block(x, g)


def test_who_listens_to_a_projection_hears_it():
    block, (x, g, _) = build(), inputs((2, 6, 4, 4), 5, None)
    block.skip.register_forward_hook(lambda *args: None)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="a hook listens to a part of the block"):
        block(x, g)


def test_autocast_takes_what_it_is_given():
    block, (x, g, dy) = build(), inputs((2, 6, 4, 4), 5, (2, 2))
    wanted = exact(block, x, g, dy)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = step(block, x.bfloat16(), g.bfloat16(), dy.bfloat16())
        whole = step(block, x, g, dy)
    assert got["y"].dtype == got["gradient of x"].dtype == torch.bfloat16
    assert got["gradient of skip.weight"].dtype == torch.float32
    close(got, wanted, 6e-2)
    close(whole, wanted, 2e-5)


# ---- the proof is itself put to the test -----------------------------------------------------------------------------


def test_the_yardstick_finds_what_is_off():
    block = build()
    given = clear(block, (2, 6, 3, 4), 5, (2, 2))
    yardstick, got = Yardstick(block, *given), step(block, *given)
    yardstick.holds(got)
    assert not any(yardstick.flips.values())
    for name, t in got.items():
        with pytest.raises(AssertionError, match=f"^{name} is off by"):
            yardstick.holds(got | {name: t * (1 + 1e-4)})


def test_a_flip_within_rounding_is_allowed_and_no_other():
    block, (x, g, dy) = build(), inputs((1, 6, 2, 2), 5, None)
    block.skip.weight.data[0], block.gating.weight.data[0] = 0, 0
    block.gating.bias.data[0] = 0
    block.psi.weight.data[0, 0] = 3
    for bias, allowed in ((1e-8, True), (1e-3, False)):
        block.skip.bias.data[0] = bias
        yardstick = Yardstick(block, x, g, dy)
        assert any(yardstick.flips.values()) == allowed
        block.skip.bias.data[0] = -bias   # the relu stops what it let pass
        with nullcontext() if allowed else pytest.raises(AssertionError, match="is off by"):
            yardstick.holds(step(block, x, g, dy))
