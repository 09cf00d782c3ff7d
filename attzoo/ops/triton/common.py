"""Words that every kernel is written in: where a number lies, how much a program takes, how maxima treat NaN.

Tensors are (N, C, S) to a kernel, space being one axis, and lie channels first or last; `LAST` says which. A program
takes a tile of BC channels by BS places. What is added up is added up in float32 and in one order, whatever the device:
the same numbers give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

KEPT = torch.float32                # what is kept, and
REAL = tl.constexpr(tl.float32)     # what is added up; tests, to prove the formulas, make it float64
INFINITY = tl.constexpr(float("inf"))
COMPILED: dict[Any, Any] = {}       # by what a kernel was called with: what runs it, and constants that this wants too
ROWS = 16         # samples that a product of matrices takes at once, the least that there is hardware for
ALIGNED = 16      # bytes that Triton reads at once where an address is a multiple of them
MOST = 4096       # launches that are kept
PROGRAMS = 528    # that fill a GPU: 4 for each of 132 multiprocessors; a constant, for sums to have one order


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def at(n, c, s, C, S, LAST: tl.constexpr):
    """Where (n, c, s) lies: a sample may begin past 2^31 numbers, and has fewer."""
    start = n.to(tl.int64) * C * S
    if LAST:
        place = s * C + c
    else:
        place = c * S + s
    return start + place


@triton.jit
def places(i, S, BS: tl.constexpr):
    """The sample and the places of program i, where each takes BS places of one."""
    blocks = tl.cdiv(S, BS)
    return i // blocks, i % blocks * BS + tl.arange(0, BS)


@triton.jit
def corner(i, C, S, BC: tl.constexpr, BS: tl.constexpr):
    """The sample, channels and places of program i, where each takes one tile."""
    across, down = tl.cdiv(S, BS), tl.cdiv(C, BC)
    c = i // across % down * BC + tl.arange(0, BC)
    return i // across // down, c, i % across * BS + tl.arange(0, BS)


@triton.jit
def larger(a, b):
    """The larger of two numbers, NaN where either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def multiply_add(a, b, sums, PRECISION: tl.constexpr):
    """sums + a b, of matrices, in the dtype of sums, which Triton 3.6 has to be told."""
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit
def relu(x):
    """max(x, 0), NaN where x is."""
    return larger(x, tl.zeros_like(x))


# ---- around them -----------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Channels by places, and how many threads of 32 share them."""

    BC: int
    BS: int
    num_warps: int


def sizes(x: Tensor) -> tuple[int, int, int]:
    """N, C and S of (N, C, *S)."""
    return x.shape[0], x.shape[1], prod(x.shape[2:])


def last(x: Tensor) -> bool:
    """Whether x, which is dense, lies channels last."""
    return not x.is_contiguous()


def alike(x: Tensor, other: Tensor) -> Tensor:
    """x, dense, in the layout of `other`, which is dense: copied only where it must be."""
    if last(other):
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def tile(x: Tensor, area: int = 4096) -> Tile:
    """A tile for one pass over x: rows of what lies side by side, long enough for every thread to load 16 bytes."""
    _, C, S = sizes(x)
    many = area * 4 // x.element_size() if x.element_size() < 4 else area
    if last(x):
        BC = min(power(C), many // 32)
        BS = min(power(S), many // BC)
    else:
        BS = min(power(S), many // 8)
        BC = min(power(C), many // BS)
    return Tile(BC, BS, 8 if BC * BS >= 4096 else 4)


def power(n: int) -> int:
    """The least power of 2 that is not under n."""
    return 1 << (n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """How many b it takes to have a; Triton's own takes several times as long."""
    return -(-a // b)


def split(many: int, programs: int) -> tuple[int, int]:
    """Into how many parts, of how many steps each, `many` steps go to fill a GPU beside as many `programs`."""
    each = cdiv(many, min(many, max(1, cdiv(PROGRAMS, programs))))
    return cdiv(many, each), each


def small(x: Tensor, *shape: int) -> Tensor:
    """Room for what is kept of x."""
    return torch.empty(shape, dtype=KEPT, device=x.device)


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Run a kernel, on the device and the stream of its first tensor; no programs, no run.

    What Triton compiles is kept here by all of the call that it looks at, and more: to have Triton look again takes
    longer than all else that a launch does. What has been launched once does not see its settings change.
    """
    if not programs:
        return
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _launch(kernel, programs, device, args, options)
    else:
        _launch(kernel, programs, device, args, options)


def _launch(kernel: Any, programs: int, device: torch.device, args: Sequence[Any], options: dict[str, Any]) -> None:
    seen = [(arg.dtype, arg.data_ptr() % ALIGNED) if isinstance(arg, Tensor) else arg for arg in args]
    key = kernel.fn, programs, device, *seen, *options.values()
    if known := COMPILED.get(key):
        run, constants = known
        run(*args, *constants)
        return
    made = kernel[(programs,)](*args, enable_fp_fusion=True, **options)   # said, for its default is to change
    if made is not None:   # the interpreter makes nothing
        if len(COMPILED) >= MOST:
            COMPILED.clear()
        COMPILED[key] = made[(programs, 1, 1)], [options[name] for name in kernel.arg_names[len(args) :]]


@torch.no_grad()
def follow(norm: Any, mean: Tensor, var: Tensor, count: int) -> None:
    """What a batch norm does in training besides: its running statistics follow those of a batch of `count` values."""
    if norm.running_mean is None or not norm.track_running_stats:
        return
    norm.num_batches_tracked += 1
    if not count:
        return
    step = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean += step * (mean - norm.running_mean)
    norm.running_var += step * (var * (count / (count - 1)) - norm.running_var)
