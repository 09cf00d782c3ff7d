"""The fused kernels give what the plain form gives in float64, of any shape, layout, dtype, options and numbers."""

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from kernels import (
    DEVICE,
    DTYPES,
    GUARD,
    LAYOUTS,
    NAMES,
    POOLED,
    SPATIAL,
    build,
    check,
    draw,
    exact,
    laid,
    near,
    room,
    step,
)
from kernels import tiny as tiny_tiles
from operations import Large
from strategies import cases, steps
from torch import nn

import attzoo
from attzoo import testing
from attzoo.fast.triton import passes

every = pytest.mark.parametrize("name", NAMES)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")   # NumPy's, of what is not finite


@pytest.fixture(autouse=True)
def _rooms(monkeypatch):
    """Whatever kernels write to is full of NaN first, and nobody writes around it."""
    made, empty, empty_like = [], torch.empty, torch.empty_like

    def watched(size, stride, dtype, device):
        tensor, whole = room(size, stride, dtype, device)
        made.append(whole)
        return tensor

    def new(*size, **kwargs):
        if kwargs.keys() != {"dtype", "device"} or kwargs["dtype"] != torch.float32:   # not what kernels ask for
            return empty(*size, **kwargs)
        return watched(*size, empty(*size, device="meta").stride(), **kwargs)

    def like(x, **kwargs):
        if kwargs or not x.is_floating_point():
            return empty_like(x, **kwargs)
        return watched(x.shape, empty_like(x, device="meta").stride(), x.dtype, x.device)

    monkeypatch.setattr(torch, "empty", new)
    monkeypatch.setattr(torch, "empty_like", like)
    yield
    assert made
    for whole in made:
        assert whole[:GUARD].isnan().all()
        assert whole[-GUARD:].isnan().all()


# ---- the same numbers ------------------------------------------------------------------------------------------------


@every
def test_a_training_step(name):
    @settings(max_examples=max(settings.default.max_examples // 3, 2))
    @given(steps(name))
    def run(it):
        case, layout, kind, small = it
        block, (shape,), dtype = case.block("torch").to(DEVICE).train(), case.shapes, DTYPES[case.dtype]
        if case.spec.config().get("norm") and shape[0] * torch.Size(shape[2:]).numel() == 1:
            return   # one value per channel has no statistics
        x, dy = draw(*shape, layout=layout, kind=kind, dtype=dtype, seed=case.seed), draw(*shape, dtype=dtype, seed=1)
        with tiny_tiles() if small else nullcontext():
            check(block, x, dy, case.dtype)

    run()


@every
def test_the_meaning_in_numpy(name):
    """Not by way of the plain form: outputs in every dtype, slopes by differences."""

    def held(contract, dtypes, examples, **kwargs):
        @settings(max_examples=examples)
        @given(cases(name, dtypes, **kwargs))
        def run(case):
            with torch.device(DEVICE), attzoo.kernels("triton"):
                contract(case, "torch")

        run()

    held(testing.outputs, tuple(DTYPES), 3)
    held(testing.gradients, ("float32",), 2)
    held(testing.training, ("float32",), 1, small=True)


LARGER = ((17, 70, 3, 5), (1, 9, 1500), (2, 300, 3), (2, 3, 23, 29))   # past the edge of a tile in each direction


@every
@layouts
@pytest.mark.parametrize("number", range(len(LARGER)))
def test_several_tiles_and_parts(name, layout, number):
    shape, cases = LARGER[number], attzoo.get(name, backend="torch").triton_form().CASES
    options = {"reduced_channels": shape[1]} if name in POOLED else {}
    options |= cases[number % len(cases)].arguments | ({"spatial_dims": len(shape) - 2} if name in SPATIAL else {})
    block = build(name, shape[1], **options)
    check(block, draw(*shape, layout=layout, kind="ties"), draw(*shape, seed=1))


@every
@layouts
def test_parts_of_several_steps_of_which_the_last_are_past_the_end(name, layout):
    with tiny_tiles():
        check(build(name, 6), draw(3, 6, 3, 11, layout=layout), draw(3, 6, 3, 11, seed=1))


@every
def test_the_same_numbers_give_the_same_bits(name):
    block, x, dy = build(name), draw(2, 8, 5, 4), draw(2, 8, 5, 4, seed=1)
    with tiny_tiles():
        one, two = step(block, x, dy), step(block, x, dy)
    assert all(torch.equal(one[key], two[key]) for key in one)


@every
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_sizes_of_one(name, dims):
    shape = (2, 1, *(1,) * dims)
    check(build(name, 1, dims=dims), draw(*shape), draw(*shape, seed=1))


# ---- memory ----------------------------------------------------------------------------------------------------------


@every
@layouts
def test_x_and_the_gradient_of_y_may_lie_in_memory_as_they_like(name, layout):
    block, plain = build(name), draw(2, 8, 4, 3)
    wanted = exact(block, plain, dy := draw(2, 8, 4, 3, seed=1))
    wide = draw(2, 8, 4, 6)
    wide[..., ::2] = plain
    turned = plain.mT.contiguous().mT
    for x in (draw(2, 8, 4, 3, layout=layout), wide[..., ::2], turned):
        got = step(block, x, dy if x is turned else laid(dy))
        near(got, wanted)
    assert step(block, draw(2, 8, 4, 3, layout=layout), dy)["y"].stride() == draw(2, 8, 4, 3, layout=layout).stride()
    one = draw(1, 8, 1, 1, seed=2)
    for spread in (one.expand(2, 8, 4, 3), draw(1, seed=2).expand(2, 8, 4, 3)):
        check(block, draw(2, 8, 4, 3, layout=layout), spread)


@every
def test_weights_may_lie_in_memory_as_they_like(name):
    """Networks are turned to channels last as a whole, kernels of convolutions too."""
    block, x, dy = build(name), draw(2, 8, 4, 3, layout=LAYOUTS[1]), draw(2, 8, 4, 3, seed=1)
    wanted = exact(block, x, dy)
    near(step(copy.deepcopy(block).to(memory_format=torch.channels_last), x, dy), wanted)
    for parameter in block.parameters():
        parameter.data = parameter.data.mT.contiguous().mT if parameter.ndim > 1 else parameter.data
    near(step(block, x, dy), wanted)


@every
@layouts
def test_a_training_step_makes_the_output_and_the_gradient_and_no_more(name, layout):
    block, x = build(name, 32, norm=False) if name in SPATIAL else build(name, 32), draw(2, 32, 6, 5, layout=layout)
    x, dy = x.requires_grad_(), draw(2, 32, 6, 5, layout=layout, seed=1)
    kept = []
    with Large(x) as seen, torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        with attzoo.kernels("triton"):
            y = block(x)
        torch.autograd.grad(y, [x, *block.parameters()], dy)
    known = {t.untyped_storage().data_ptr() for t in (x, dy, *block.parameters())}
    assert sum(t.numel() for t in kept if t.untyped_storage().data_ptr() not in known) <= x.numel() // 4
    assert len(seen.made.keys() - known - {0}) == 2   # at 0 is what has no memory


# ---- what is in x ----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(("kind", "layout"), [("ties", LAYOUTS[0]), ("equal", LAYOUTS[1])])
def test_ties_share_evenly(name, kind, layout):
    x = draw(2, 8, 4, 3, layout=layout, kind=kind)
    assert x.amax((2, 3), keepdim=True).eq(x).sum((2, 3)).gt(1).any()
    check(build(name), x, draw(2, 8, 4, 3, seed=1))
    x = draw(2, 8, 4, 3, layout=layout)
    x[:, 3] = x[:, 5] = x.amax(1) + 1   # ties over channels, where nothing has scaled them
    with tiny_tiles():
        check(build(name), x, draw(2, 8, 4, 3, seed=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("name", "hard"), [*((name, False) for name in NAMES), *((name, True) for name in POOLED)])
def test_what_is_not_finite_stays_where_it_is(name, value, hard):
    block = build(name, gate="hard_sigmoid") if hard else build(name)
    x, dy = draw(3, 8, 3, 4, layout=LAYOUTS[value < 0]), torch.ones(3, 8, 3, 4, device=DEVICE)
    x[1, 2, 0, 1] = value
    got, wanted = step(block.eval(), x, dy), exact(block, x, dy)
    assert not got["y"][1].isfinite().all()
    assert got["y"][::2].isfinite().all()
    assert got["gradient of x"][::2].isfinite().all()
    if hard:   # of a gate that is NaN, relu6 has the gradient 1 on a GPU, as here, and 0 on a CPU
        near({"y": got["y"]}, {"y": wanted["y"]})
        assert not any((got[key].isfinite() & ~wanted[key].isfinite()).any() for key in got)
    else:
        near(got, wanted)


@every
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_channels_and_places_of_nothing_finite(name, value):
    for at in ((0, 3), (0, slice(None), 1, 2)):
        x = draw(2, 8, 3, 4)
        x[at] = value
        check(build(name).eval(), x, draw(2, 8, 3, 4, seed=1))


@every
def test_what_is_not_finite_in_the_gradient_of_y_stays_where_it_is(name):
    block, x = build(name).eval(), draw(3, 8, 3, 4)
    for value in (float("nan"), float("inf")):
        dy = draw(3, 8, 3, 4, seed=1)
        dy[1, 2, 0, 1] = value
        got, wanted = step(block, x, dy), exact(block, x, dy)
        if value != value:
            near(got, wanted)
        # the plain form multiplies infinite shares of maxima by 0, so that more of them become NaN
        assert all(torch.equal(got[key].isfinite(), wanted[key].isfinite()) for key in got)


@every
def test_sums_past_what_half_precision_holds(name):
    x = draw(2, 8, 12, 11, kind="equal", dtype=torch.float16).abs() + 600
    dy = draw(2, 8, 12, 11, dtype=torch.float16, seed=1).abs()
    assert (x * dy).sum((2, 3)).isinf().any()
    got = check(build(name, dtype=torch.float16), x, dy / 16, "float16")
    assert all(t.isfinite().all() for t in got.values())


# ---- what learns -----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("frozen", ["everything", "first", "input"])
def test_what_is_frozen_gets_no_gradient(name, frozen):
    block, x, dy = build(name), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    if frozen == "input":
        with attzoo.kernels("triton"):
            y = block(x)
        found = torch.autograd.grad(y, list(block.parameters()), dy)
        wanted = exact(build(name), x, dy)
        names = [name for name, _ in block.named_parameters()]
        near(dict(zip(names, found, strict=True)), {name: wanted[f"gradient of {name}"] for name in names})
        return
    for parameter in list(block.parameters())[: None if frozen == "everything" else 1]:
        parameter.requires_grad_(False)
    check(block, x, dy)


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference(name, mode):
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
def test_running_statistics(name, change):
    """Two steps in training, one in evaluation, each from what the one before it left."""
    block = build(name)
    norm = (block.spatial if name == "cbam" else block).norm
    for key, value in change.items():
        setattr(norm, key, value)
    twin = copy.deepcopy(block).double()
    for turn in range(3):
        block.train(turn < 2)
        twin.train(turn < 2)
        x, dy = draw(2, 8, 4, 3, seed=turn), draw(2, 8, 4, 3, seed=turn + 5)
        near(step(block, x, dy), step(twin, x.double(), dy.double(), mode="eager"))
        with torch.no_grad():
            with attzoo.kernels("triton"):
                block(x)
            with attzoo.kernels("eager"):
                twin(x.double())
    assert norm.num_batches_tracked == (0 if "track_running_stats" in change else 2)


@pytest.mark.parametrize("name", SPATIAL)
def test_a_norm_without_running_statistics(name):
    block, x, dy = build(name), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    part = block.spatial if name == "cbam" else block
    part.norm = nn.BatchNorm2d(1, track_running_stats=False).to(DEVICE)
    check(block, x, dy)
    check(block.eval(), x, dy)


@pytest.mark.parametrize("name", SPATIAL)
def test_one_value_has_no_statistics(name):
    with attzoo.kernels("triton"), pytest.raises(ValueError, match="more than 1 value per channel"):
        build(name)(draw(1, 8, 1, 1))


@every
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_nothing(name, training):
    block, x = build(name).train(training), draw(0, 8, 4, 3)
    wanted = step(block, x, x, mode="eager")
    got = step(block, x, x)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key].nan_to_num(7), wanted[key].nan_to_num(7)) for key in got)


# ---- the proof is itself put to the test -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kernel"), [("se", "scale"), ("cbam", "pool_channels"), ("eca", "to_input")])
def test_what_nobody_writes_is_found_out(name, kernel, monkeypatch):
    monkeypatch.setattr(passes, kernel, lambda *args, **kwargs: None)
    with pytest.raises(AssertionError):
        check(build(name).eval(), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1))
