"""Turns on a CUDA device, and what the device can do at most.

Two clocks. "graph": a CUDA graph of the call is replayed between two events, so the host costs nothing; before each
replay the device is kept waiting for as long as the host needs to queue it, lest the gap between the events count.
"calls": the time from the first of many calls from Python until the device is done with the last, the host included.
Calls rotate over sets of inputs that are together larger than the cache: in a warm cache the memory would not be timed
at all, and after a flush the lines that it left dirty are written back at the expense of what is timed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache as once
from itertools import cycle
from math import ceil
from statistics import median
from time import perf_counter
from typing import Any, Final

import torch

from .timer import Call, Turn

CACHES: Final = 4        # times the L2 cache, which the sets of inputs are larger than
MOST: Final = 16         # sets of inputs
WAIT: Final = 200_000    # cycles, about 100 us: longer than the host takes to queue a replay and an event
LARGE: Final = 1 << 30   # bytes, of the copy that shows the memory's bandwidth
SMALL: Final = 32 << 20  # bytes, of what is read from the L2 cache over and over
SAMPLES: Final = 50
BUSY: Final = 1.0        # seconds of work before anything is timed
ASKED: Final = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "clocks_event_reasons.active")


def sets(size: int, cache: int) -> int:
    """How many sets of inputs of `size` bytes are needed to be larger than the cache."""
    return max(1, min(MOST, ceil(CACHES * cache / size)))


def captured(call: Call) -> Any:
    """A CUDA graph of the call, replayed twice; not by `torch.cuda.graph`, which first frees all memory, at length.

    The graph reads and writes where the call's tensors are: the call must be kept as long as the graph.
    """
    stream = aside()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):   # what a backward pass goes back through must lie on the stream that is captured
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            call()
        finally:   # or nothing on the device would work any more
            graph.capture_end()
    graph.replay()
    graph.replay()
    return graph


@once
def aside() -> Any:
    """The stream that everything is captured on: what one call leaves to autograd stands on the stream of the next."""
    return torch.cuda.Stream()   # type: ignore[no-untyped-call]


@contextmanager
def on_stream() -> Iterator[None]:
    """Inside, work is queued on the stream that everything is captured on, after and before that of the usual one."""
    usual, stream = torch.cuda.current_stream(), aside()
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        yield
    usual.wait_stream(stream)


def replayed(calls: Sequence[Call]) -> Turn:
    """Turns that replay graphs of the calls, one after the other."""
    graphs = cycle([(captured(call), call) for call in calls])   # with the call, whose tensors the graph works on

    def take(repeats: int) -> float:
        return median(_between_events(next(graphs)[0].replay) for _ in range(repeats))

    return take


def called(calls: Sequence[Call]) -> Turn:
    """Turns that make the calls from Python, one after the other."""
    rotation = cycle(calls)

    def take(repeats: int) -> float:
        torch.cuda.synchronize()
        began = perf_counter()
        for _ in range(repeats):
            next(rotation)()
        torch.cuda.synchronize()
        return (perf_counter() - began) / repeats

    return take


def _between_events(replay: Call) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))   # type: ignore[no-untyped-call]
    torch.cuda._sleep(WAIT)   # type: ignore[no-untyped-call]
    first.record()
    replay()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def ceilings() -> dict[str, float]:
    """What the device can do: copying, reading from its cache, starting a kernel; at the clocks of a busy device."""
    speed_up()
    large, small = (torch.randn(size // 4, device="cuda") for size in (LARGE, SMALL))
    target, one = torch.empty_like(large), torch.zeros(1, device="cuda")
    turns = {
        "copy GB/s": (replayed([lambda: target.copy_(large)]), 2 * LARGE / 1e9),
        "L2 read GB/s": (replayed([lambda: small.sum()]), SMALL / 1e9),
    }
    rates = {name: size / median(turn(1) for _ in range(SAMPLES)) for name, (turn, size) in turns.items()}
    starts = {"launch us": replayed([lambda: one.fill_(1)]), "launch from Python us": called([lambda: one.fill_(1)])}
    return rates | {name: 1e6 * median(turn(20) for _ in range(SAMPLES)) for name, turn in starts.items()}


def speed_up() -> None:
    """Keep the device busy until its clocks are up: an idle one of 345 MHz copied at two thirds of its rate."""
    a = torch.randn(4096, 4096, device="cuda")
    began = perf_counter()
    while perf_counter() - began < BUSY:
        a = torch.tanh(a @ a)
        torch.cuda.synchronize()


def state() -> dict[str, str]:
    """Its driver, clocks and temperature now, as far as they can be asked for."""
    asked = ["nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    except (OSError, subprocess.CalledProcessError, IndexError):
        told = []
    return dict(zip(ASKED, told, strict=False))


def facts() -> dict[str, Any]:
    """What the device is."""
    device = torch.cuda.get_device_properties(0)
    return {
        "gpu": device.name,
        "multiprocessors": device.multi_processor_count,
        "capability": f"{device.major}.{device.minor}",
        "L2 MiB": cache() / 2**20,
        "memory GiB": round(device.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),   # type: ignore[no-untyped-call]
    }


def cache() -> int:
    """Bytes of the L2 cache."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size)
