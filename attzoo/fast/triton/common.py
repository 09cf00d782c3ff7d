"""Functions that all kernels share: offsets, tiles, maxima with NaN, counters, and launching.

A kernel treats a tensor as (N, C, S), with all spatial axes flattened into S positions; `LAST` is true for channels
last. A launch starts many programs (thread blocks of CUDA). Each processes a tile of BC channels by BS positions. Sums
are computed in float32 in a fixed order, so results are reproducible.

Names in all kernels: n is the index of a sample, c are indices of channels, s or p of positions, and `inside` is true
where indices are valid. `parts` receives the partial results of PARTS programs, which the last of them, by `counter`
(see `is_last`), adds up. STEPS is the number of tiles in a part. Other capitals are sizes, and B followed by a letter
is the number of such indices in a tile.
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

SAVED_DTYPE = torch.float32                # dtype of saved tensors
REAL = tl.constexpr(tl.float32)     # dtype of sums; tests of the formulas set both to float64
INFINITY = tl.constexpr(float("inf"))
COMPILED: dict[Any, Any] = {}       # by arguments of a launch: the compiled kernel, and constants that it takes
ROWS = 16         # number of samples per matrix product, the minimum of tl.dot
MAX_COMPILED = 4096       # largest number of cached launches
COUNTERS: dict[Any, Tensor] = {}   # by device and stream
FEWEST_COUNTERS = 1024
PROGRAMS = 528    # number of programs that fill a GPU, 4 per multiprocessor of an H200; constant, for one order of sums


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def at(n, c, p, C, S, LAST: tl.constexpr):
    """Return the offset of element (n, c, p) in a tensor (N, C, S), in elements; LAST: whether it is channels last.

    The offset of a sample may exceed 2^31, the size of a sample may not.
    """
    start = n.to(tl.int64) * C * S
    if LAST:
        offset = p * C + c
    else:
        offset = c * S + p
    return start + offset


@triton.jit
def nth(start, index: tl.constexpr, rows, columns):
    """Return the address of an array among consecutive arrays of shape (rows, columns).

    start: address of the first array. index: index of the array.
    """
    return start + tl.full([], rows, tl.int64) * columns * index


@triton.jit
def sample_and_positions(program, S, BS: tl.constexpr):
    """Return the sample and the positions (BS,) of a program. Each processes BS of the S positions of a sample."""
    blocks = tl.cdiv(S, BS)
    return program // blocks, program % blocks * BS + tl.arange(0, BS)


@triton.jit
def tile_indices(program, C, S, BC: tl.constexpr, BS: tl.constexpr):
    """Return the sample, channels (BC,) and positions (BS,) of a program. Each processes one tile of a sample."""
    tiles_of_positions, tiles_of_channels = tl.cdiv(S, BS), tl.cdiv(C, BC)
    c = program // tiles_of_positions % tiles_of_channels * BC + tl.arange(0, BC)
    return program // tiles_of_positions // tiles_of_channels, c, program % tiles_of_positions * BS + tl.arange(0, BS)


@triton.jit
def larger(a, b):
    """Return the larger of two numbers, NaN if either is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def multiply_add(a, b, sums, PRECISION: tl.constexpr):
    """Return sums + a @ b in the dtype of `sums`, which Triton 3.6 does not infer.

    PRECISION: argument `input_precision` of tl.dot, such as "tf32".
    """
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit
def relu(x):
    """Return max(x, 0), NaN where x is NaN."""
    return larger(x, tl.zeros_like(x))


@triton.jit
def is_last(counter, programs):
    """Count this program as finished in `counter`, and return whether it is the last of `programs` programs.

    The last program may read what the others stored, and adds up partial sums in a fixed order, so results do not
    depend on which program is last. The counter is zero before the first program and after the last. Loads of values
    that others stored must bypass the L1 cache, which is not coherent (cache_modifier=".cg").
    """
    tl.debug_barrier()   # wait for the stores of all threads of this program
    is_last_program = tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1
    if is_last_program:
        tl.store(counter, 0)
    return is_last_program


# ---- launching -------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Channels and positions of a tile, and the number of warps (of 32 threads) that process it."""

    BC: int
    BS: int
    num_warps: int


def sizes(x: Tensor) -> tuple[int, int, int]:
    """Return N, C and the product of the spatial sizes of x (N, C, *S)."""
    return x.shape[0], x.shape[1], prod(x.shape[2:])


def is_channels_last(x: Tensor) -> bool:
    """Whether x, which must be dense, is channels last."""
    return not x.is_contiguous()


def match_layout(x: Tensor, reference: Tensor) -> Tensor:
    """Return x in the memory layout of `reference`, copied if it differs; both must be dense."""
    if x.stride() == reference.stride() and x.shape == reference.shape:
        return x
    if is_channels_last(reference):
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def next_power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is at least n."""
    return 1 << (n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up. It is several times as fast as triton.cdiv."""
    return -(-a // b)


def parts_and_steps(count: int, programs: int) -> tuple[int, int]:
    """Split `count` steps into parts that fill a GPU; return the number of parts and the number of steps in each.

    `programs` is the number of programs that each part needs.
    """
    steps = cdiv(count, min(count, max(1, cdiv(PROGRAMS, programs))))
    return cdiv(count, steps), steps


def empty_float32(x: Tensor, *shape: int) -> Tensor:
    """Allocate a float32 tensor of this shape on the device of x."""
    return tape.allocated(partial(_empty, shape, SAVED_DTYPE), x)


def _empty(shape: Sequence[int], dtype: torch.dtype, x: Tensor) -> Tensor:
    """Allocate a tensor of this shape and dtype on the device of x."""
    return torch.empty(shape, dtype=dtype, device=x.device)


def counters(x: Tensor, count: int) -> Tensor:
    """Return at least `count` zeros for `is_last`: int32, on the device of x, for the current stream.

    Kernels of a stream run in order and reset the counters, so that all calls on a stream share them. A CUDA graph may
    run in parallel with the stream that it was captured on, and a compiled graph may own the memory that it allocates.
    Therefore graphs allocate new counters.
    """
    return tape.allocated(partial(_counters, count), x)


def _counters(count: int, x: Tensor) -> Tensor:
    """Return the result of `counters`: the zeros of the current stream in COUNTERS or, in graphs, new ones."""
    stream = None
    if x.is_cuda:
        if getattr(THREAD_STATE, "in_graph", False) or torch.cuda.is_current_stream_capturing():
            return torch.zeros(count, dtype=torch.int32, device=x.device)
        stream = torch.cuda.current_stream(x.device).cuda_stream
    key = x.device, stream
    zeros = COUNTERS.get(key)
    if zeros is None or len(zeros) < count:
        zeros = torch.zeros(next_power_of_2(max(count, FEWEST_COUNTERS)), dtype=torch.int32, device=x.device)
        if tape.current() or not guard.in_mode():   # a user's mode may return a subclass of Tensor
            COUNTERS[key] = zeros
    return zeros


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Launch `programs` programs of a kernel on the current device and stream; do nothing if `programs` is 0.

    args, options: positional and keyword arguments of the kernel, with the options of Triton, such as num_warps.

    Compiled kernels are cached by everything that Triton specialises on, because Triton's own lookup takes longer than
    the rest of a launch. A cached kernel ignores later changes of Triton's settings.
    """
    if programs:
        runner, constants = tape.unwatched(_launch, kernel, programs, args, options)
        if recorder := tape.current():
            recorder.called(runner, (*args, *constants))


def _launch(kernel: Any, programs: int, args: Sequence[Any], options: dict[str, Any]) -> tuple[Any, Sequence[Any]]:
    """Launch `programs` programs of a kernel, and cache how. Arguments are those of `launch`.

    Returns:
        A function that launches the same again, called with the arguments and the constants; and the constants.
    """
    arg_keys = [(arg.dtype, arg.data_ptr() % ALIGNED) if isinstance(arg, Tensor) else arg for arg in args]
    key = kernel.fn, programs, args[0].device, *arg_keys, *options.values()
    compiled_launch: tuple[Any, Sequence[Any]] | None = COMPILED.get(key)
    if compiled_launch is not None:
        runner, constants = compiled_launch
        runner(*args, *constants)
        return compiled_launch
    start = partial(kernel[(programs,)], enable_fp_fusion=True, **options)   # explicit, because the default will change
    compiled = start(*args)
    if compiled is None:   # the interpreter compiles nothing
        return start, ()
    if len(COMPILED) >= MAX_COMPILED:
        COMPILED.clear()
    constants = [options[name] for name in kernel.arg_names[len(args) :]]
    COMPILED[key] = compiled_launch = compiled[(programs, 1, 1)], constants
    return compiled_launch
