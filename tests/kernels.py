"""What every test of fused kernels needs: blocks, numbers, room that is watched, and the plain form in float64.

Kernels run on the GPU where there is one, else on the CPU, in Triton's interpreter.
"""

import copy
from contextlib import contextmanager

import pytest
import torch

import attzoo
from attzoo.fast import autograd, choice

if choice.unavailable():   # a module that imports this one is skipped
    pytest.skip(f"no kernels here: {choice.unavailable()}", allow_module_level=True)

from attzoo.blocks.eca import triton as eca
from attzoo.fast import tape
from attzoo.fast.triton import common, maps, passes, perceptron
from attzoo.fast.triton.common import Tile
from attzoo.ops import torch as ops
from attzoo.testing import TOLERANCE
from attzoo.testing.case import EPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CARDS = {name: attzoo.info(name) for name in attzoo.names() if attzoo.info(name).fused}
ALL = tuple(CARDS)
NAMES = tuple(name for name, card in CARDS.items() if card.residual)      # those of one input
SPATIAL = tuple(name for name in NAMES if "positions" in CARDS[name].attends_to)
POOLED = tuple(name for name in NAMES if "gate" in CARDS[name].spec.__dataclass_fields__)   # those with a perceptron
# Small, and with every option that has kernels of its own
SMALL = {"reduced_channels": 3, "kernel_size": 3, "norm": True}
LAYOUTS = ("channels first", "channels last")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NUDGE = 2.0**-20   # relative size of the perturbations that show the condition
TURN = 4 * EPS["float32"]   # a relu's input that is smaller, relative to the largest, may have the wrong sign
FLOOR = 16   # times eps and size: what any form may be off, where the eager one happens to be exact
GUARD = 64    # numbers before and after each tensor that nobody may read or write


def options_of(name, dims=2):
    """A block's arguments in these tests, beside its channels."""
    options = SMALL | {"spatial_dims": dims}
    return {option: value for option, value in options.items() if option in CARDS[name].spec.__dataclass_fields__}


def build(name, channels=8, dtype=torch.float32, dims=2, device=DEVICE, **options):
    """A small block in training, with every option that has kernels of its own."""
    torch.manual_seed(0)
    return CARDS[name].create(channels, backend="torch", **options_of(name, dims) | options).to(device, dtype)


def given(name, *shape, dtype=torch.float32, layout=LAYOUTS[0], seed=0, device=DEVICE):
    """What `step` takes for a block: x, further inputs of half its grid, and the gradient of y."""
    half = (*shape[:2], *(-(-size // 2) for size in shape[2:]))
    shapes = shape, *[half] * (len(CARDS[name].inputs) - 1), shape
    seeds = seed, *range(seed + 2, seed + len(shapes)), seed + 1
    return [draw(*s, dtype=dtype, layout=layout, seed=i, device=device) for s, i in zip(shapes, seeds, strict=True)]


def draw(*shape, layout=LAYOUTS[0], kind="normal", dtype=torch.float32, seed=0, device=DEVICE):
    """Numbers of a kind, the same on every device, in room that is NaN all around."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        x = x.round().relu()
    elif kind == "equal":   # one channel of one number, and one of zeros
        x[:, 0] = 1.5
        x[:, -1] = 0
    if layout == LAYOUTS[1]:
        x = laid(x)
    return room(shape, x.stride(), dtype, device)[0].copy_(x)


def laid(x):
    """x, channels last."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def room(size, stride, dtype, device):
    """A tensor full of NaN between guards of NaN, and all of it."""
    long = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if 0 not in size else 0
    whole = torch.full((long + 2 * GUARD,), float("nan"), dtype=dtype, device=device)
    return torch.tensor([], dtype=dtype, device=device).set_(whole.untyped_storage(), GUARD, size, stride), whole


def step(block, *given, mode="triton"):
    """Output, the gradients of inputs and of all that learns, and what a copy's buffers hold afterwards, by name.

    given: the inputs, then the gradient of the output.
    """
    *xs, dy = given
    block, xs = copy.deepcopy(block), [x.detach().requires_grad_() for x in xs]
    with attzoo.kernels(mode):
        y = block(*xs)
    wanted = dict(zip("xg", xs, strict=False)) | {name: p for name, p in block.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(y, list(wanted.values()), dy)
    found = dict(zip((f"gradient of {name}" for name in wanted), gradients, strict=True))
    return {"y": y.detach(), **found, **dict(block.named_buffers())}


def exact(block, *given):
    """The same by the plain form in float64."""
    return step(copy.deepcopy(block).double(), *(t.double() for t in given), mode="eager")


def condition(block, x, dy, wanted):
    """How far `exact` moves per relative movement of x, dy and weights, as in testing.oracle, but ties stay."""
    moved = dict.fromkeys(wanted, 0.0)

    def nudged(t, turn):   # equal numbers alike
        return t.double() * (1 + NUDGE * torch.sin((turn + 1) * 1e5 * t.double()).sign())

    for turn in range(3):
        other = copy.deepcopy(block).double()
        for parameter in other.parameters():
            parameter.data = nudged(parameter.data, turn)
        there = exact(other, nudged(x, turn), nudged(dy, turn))
        for name, t in there.items():
            off = (t - wanted[name]).abs().nan_to_num(0, posinf=0)
            moved[name] = max(moved[name], off.max().item() / NUDGE if off.numel() else 0.0)
    return moved


def near(got, wanted, dtype="float32", moved=None, stray=0.0, eager=None):
    """That what `step` gives is right to the last digits of its dtype, and not finite just where it should be.

    eager: what the plain form gives in the same dtype; twice its distance is allowed too.
    stray: share of numbers that may be off. Of many places a few have two maxima that differ by less than rounding.
    """
    assert got.keys() == wanted.keys()
    for name, w in wanted.items():
        g = got[name].double()
        assert g.shape == w.shape, name
        finite = w.isfinite()
        assert torch.equal(g.nan_to_num(7, 8, 9)[~finite], w.double().nan_to_num(7, 8, 9)[~finite]), name
        scale = max(1.0, w[finite].abs().max().item() if finite.any() else 0.0) + (moved or {}).get(name, 0.0)
        allowed = TOLERANCE["output" if name == "y" else "gradient"] * EPS[dtype] * scale
        if eager is not None and finite.any():
            allowed = max(allowed, 2 * (eager[name].double() - w)[finite].abs().nan_to_num(0, posinf=0).max().item())
        off = (g - w)[finite].abs()
        assert not off.isnan().any(), f"{name} is not finite where it should be"
        assert (off > allowed).sum() <= stray * off.numel(), f"{name} is off by {off.max()}, allowed {allowed}"


class Yardstick:
    """How far from float64 a step by kernels may be: twice what the eager form of the same dtype is.

    Where a relu's input is within rounding of zero, a correct form may let it pass or not. What a step gives when all
    of these pass, and when none does, is apart by what such flips may cost.
    """

    def __init__(self, block, *given):
        self.eps = EPS[str(given[0].dtype).removeprefix("torch.")]
        self.wanted, self.eager = exact(block, *given), step(block, *given, mode="eager")
        with turned(True) as self.unclear:
            everything = exact(block, *given)
        with turned(False):
            nothing = exact(block, *given)
        self.flips = {name: distance(everything[name], nothing[name]) for name in self.wanted}

    def holds(self, got):
        """That what `step` gives is as near to float64 as that, and NaN in the same places."""
        assert got.keys() <= self.wanted.keys()
        for name, g in got.items():
            w = self.wanted[name]
            assert g.shape == w.shape, name
            assert torch.equal(g.isnan(), w.isnan()), f"{name}: NaN where there is none, or none where it is"
            size = max(w.double().nan_to_num().norm().item(), w.numel() ** 0.5)
            allowed = 2 * (distance(self.eager[name], w) + self.flips[name]) + FLOOR * self.eps * size
            off = distance(g, w)
            assert off <= allowed, f"{name} is off by {off / size:.1e} of its size, allowed {allowed / size:.1e}"


def distance(t, other):
    return (t.double() - other.double()).nan_to_num().norm().item()


@contextmanager
def turned(passes):
    """Inside, relus let all pass, or nothing, that is within rounding of zero but not zero; tells how many numbers."""
    unclear, real = [], ops.relu

    def relu(h):
        size = h.detach().abs()
        near = (size > 0) & (size <= TURN * size.max()) if h.numel() else size > 0
        unclear.append(int(near.sum()))
        return torch.where(near, h * passes, real(h))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "relu", relu)
        yield unclear


def close(got, wanted, digits):
    """That what `step` gives is off by less than so much of its size, and NaN in the same places."""
    assert got.keys() == wanted.keys()
    for name, w in wanted.items():
        g, w = got[name].double(), w.double()
        assert g.shape == w.shape, name
        assert torch.equal(g.isnan(), w.isnan()), f"{name}: NaN where there is none, or none where it is"
        off, size = (g - w).nan_to_num().norm().item(), max(w.nan_to_num().norm().item(), w.numel() ** 0.5)
        assert off <= digits * size, f"{name} is off by {off / size:.1e} of its size"


def check(block, x, dy, dtype="float32", stray=0.0):
    """A step by the kernels, held to the plain form in float64; returns it."""
    got, wanted = step(block, x, dy), exact(block, x, dy)
    near(got, wanted, dtype, condition(block, x, dy, wanted), stray, step(block, x, dy, mode="eager"))
    return got


@contextmanager
def tiny():
    """Tiles so small that few numbers make several tiles, several parts and several steps of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tape, "RECORDED", {})   # with other tiles
        patch.setattr(passes, "tile", lambda name, x: Tile(4, 8, 4))
        patch.setattr(common, "PROGRAMS", 12)
        patch.setattr(maps, "PLACES", 16)
        patch.setattr(perceptron, "WIDE", 16)
        patch.setattr(eca, "WIDE", 16)
        yield


def taken(block, *xs, mode="triton"):
    """Whether a call goes through the kernels."""
    calls, real = [], autograd.Fused.__call__
    with pytest.MonkeyPatch.context() as patch, attzoo.kernels(mode):
        patch.setattr(autograd.Fused, "__call__", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
        block(*xs)
    return bool(calls)
