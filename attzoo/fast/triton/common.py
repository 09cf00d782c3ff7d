"""Words that every kernel is written in: where a number lies, how much a program takes, how maxima treat NaN.

Tensors are (N, C, S) to a kernel, space being one axis, and lie channels first or last; `LAST` says which. A program
takes a tile of BC channels by BS places. What is added up is added up in float32 and in one order, whatever the device:
the same numbers give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops import guard
from .. import tape
from ..autograd import ALIGNED
from ..choice import THREAD_STATE

KEPT = torch.float32                # what is kept, and
REAL = tl.constexpr(tl.float32)     # what is added up; tests, to prove the formulas, make it float64
INFINITY = tl.constexpr(float("inf"))
COMPILED: dict[Any, Any] = {}       # by what a kernel was called with: what runs it, and constants that this wants too
ROWS = 16         # samples that a product of matrices takes at once, the least that there is hardware for
MOST = 4096       # launches that are kept
COUNTERS: dict[Any, Tensor] = {}   # by device and stream
FEWEST_COUNTERS = 1024
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
def nth(start, k: tl.constexpr, rows, columns):
    """Where array k begins, of arrays (rows, columns) that lie one after the other."""
    return start + tl.full([], rows, tl.int64) * columns * k


@triton.jit
def places(i, S, BS: tl.constexpr):
    """The sample and the places of program i, where each takes BS places of one."""
    blocks = tl.cdiv(S, BS)
    return i // blocks, i % blocks * BS + tl.arange(0, BS)


@triton.jit
def tile_indices(i, C, S, BC: tl.constexpr, BS: tl.constexpr):
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


@triton.jit
def is_last(counter, programs):
    """Count this program: whether it is the last of so many. It may read all that they have stored before.

    Only integers are counted, and sums are taken in one order by the last program, so the bits do not depend on which
    one that is. The counter is zero before the first program and after the last. What others have stored is to be read
    past the L1 cache, which does not see it (cache_modifier=".cg").
    """
    tl.debug_barrier()   # all threads of this program have stored
    done = tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1
    if done:
        tl.store(counter, 0)
    return done


# ---- around them -----------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Channels by places, and how many threads of 32 share them."""

    BC: int
    BS: int
    num_warps: int


def sizes(x: Tensor) -> tuple[int, int, int]:
    """N, C and S of (N, C, *S)."""
    return x.shape[0], x.shape[1], prod(x.shape[2:])


def is_channels_last(x: Tensor) -> bool:
    """Whether x, which is dense, lies channels last."""
    return not x.is_contiguous()


def match_layout(x: Tensor, other: Tensor) -> Tensor:
    """x, dense, in the layout of `other`, which is dense: copied only where it must be."""
    if x.stride() == other.stride() and x.shape == other.shape:
        return x
    if is_channels_last(other):
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is not under n."""
    return 1 << (n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """How many b it takes to have a; Triton's own takes several times as long."""
    return -(-a // b)


def parts_and_steps(many: int, programs: int) -> tuple[int, int]:
    """Into how many parts, of how many steps each, `many` steps go to fill a GPU beside as many `programs`."""
    each = cdiv(many, min(many, max(1, cdiv(PROGRAMS, programs))))
    return cdiv(many, each), each


def empty_float32(x: Tensor, *shape: int) -> Tensor:
    """Room for what is kept of x."""
    return tape.allocated(partial(_empty, shape, KEPT), x)


def _empty(shape: Sequence[int], dtype: torch.dtype, x: Tensor) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=x.device)


def counters(x: Tensor, count: int) -> Tensor:
    """At least `count` integers for `is_last`, all zero: int32, on x's device, for the current stream.

    Kernels of one stream follow each other and leave zeros, so that a stream's counters serve all its calls. A CUDA
    graph may run beside the stream that it was captured on, and a compiled graph may own the memory that it allocates:
    these get counters of their own, and set them to zero.
    """
    return tape.allocated(partial(_counters, count), x)


def _counters(count: int, x: Tensor) -> Tensor:
    stream = None
    if x.is_cuda:
        if getattr(THREAD_STATE, "in_graph", False) or torch.cuda.is_current_stream_capturing():
            return torch.zeros(count, dtype=torch.int32, device=x.device)
        stream = torch.cuda.current_stream(x.device).cuda_stream
    key = x.device, stream
    known = COUNTERS.get(key)
    if known is None or len(known) < count:
        known = torch.zeros(next_power_of_2(max(count, FEWEST_COUNTERS)), dtype=torch.int32, device=x.device)
        if tape.current() or not guard.in_mode():   # a user's mode may make a tensor of its own kind
            COUNTERS[key] = known
    return known


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Run a kernel on the current device and stream; no programs, no run.

    What Triton compiles is kept here by all of the call that it looks at, and more: to have Triton look again takes
    longer than all else that a launch does. What has been launched once does not see its settings change.
    """
    if programs:
        runner, constants = tape.unwatched(_launch, kernel, programs, args, options)
        if recorder := tape.current():
            recorder.called(runner, (*args, *constants))


def _launch(kernel: Any, programs: int, args: Sequence[Any], options: dict[str, Any]) -> tuple[Any, Sequence[Any]]:
    """Launch, and return what launches again: a function, and constants that it takes after `args`."""
    seen = [(arg.dtype, arg.data_ptr() % ALIGNED) if isinstance(arg, Tensor) else arg for arg in args]
    key = kernel.fn, programs, args[0].device, *seen, *options.values()
    known: tuple[Any, Sequence[Any]] | None = COMPILED.get(key)
    if known is not None:
        runner, constants = known
        runner(*args, *constants)
        return known
    start = partial(kernel[(programs,)], enable_fp_fusion=True, **options)   # said, for its default is to change
    made = start(*args)
    if made is None:   # the interpreter makes nothing
        return start, ()
    if len(COMPILED) >= MOST:
        COMPILED.clear()
    constants = [options[name] for name in kernel.arg_names[len(args) :]]
    COMPILED[key] = known = made[(programs, 1, 1)], constants
    return known


@torch.no_grad()
def update_running_stats(norm: Any, mean: Tensor, var: Tensor, count: int) -> None:
    """What a batch norm does in training besides: its running statistics follow the batch's, of `count` values.

    var: unbiased.
    """
    if norm.running_mean is None or not norm.track_running_stats:
        return
    norm.num_batches_tracked += 1
    if not count:
        return
    step = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    for running, new in ((norm.running_mean, mean), (norm.running_var, var)):
        weight = step.to(running.dtype) if isinstance(step, Tensor) else step
        running.lerp_(new.to(running.dtype), weight)
