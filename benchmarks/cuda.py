"""Time calls on a CUDA device, and measure the device's limits.

There are two clocks. "graph" replays a CUDA graph of the call between two events, which excludes the host's time. The
device sleeps before each replay while the host queues it, so that the interval between the events has no gap.
"calls" measures from the first of many calls from Python until the device has finished the last; it includes the host.
Calls rotate over sets of inputs that are together larger than the L2 cache. With one set, data would come from the
cache. Flushing the cache instead would leave dirty lines, whose write-back would add to the measured time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache as cache_result
from itertools import cycle
from math import ceil
from statistics import median
from time import perf_counter
from typing import Any, Final

import torch

from .timer import Call, Turn

CACHES: Final = 4        # all sets of inputs together are at least this many times the L2 cache
MAX_INPUT_SETS: Final = 16         # largest number of sets of inputs
WAIT: Final = 200_000    # cycles, about 100 us: longer than the host takes to queue a replay and an event
LARGE: Final = 1 << 30   # bytes of the copy that measures memory bandwidth
SMALL: Final = 32 << 20  # bytes of the tensor that is read repeatedly from the L2 cache
SAMPLES: Final = 50
BUSY: Final = 1.0        # seconds of work before anything is timed
QUERIES: Final = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "clocks_event_reasons.active")


def sets(size: int, cache: int) -> int:
    """Return how many sets of inputs of `size` bytes exceed CACHES times the cache, at most MAX_INPUT_SETS."""
    return max(1, min(MAX_INPUT_SETS, ceil(CACHES * cache / size)))


def capture_graph(call: Call) -> Any:
    """Capture a CUDA graph of the call and replay it twice.

    Does not use `torch.cuda.graph`, which first frees all memory and is slow. The graph uses the addresses of the
    call's tensors: keep a reference to the call as long as the graph.
    """
    stream = capture_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):   # a captured backward pass needs its forward pass on the same stream
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            call()
        finally:   # without this, no later call on the device works
            graph.capture_end()
    graph.replay()
    graph.replay()
    return graph


@cache_result
def capture_stream() -> Any:
    """Return the one stream for all captures, so that a forward pass and its backward pass share a stream."""
    return torch.cuda.Stream()   # type: ignore[no-untyped-call]


@contextmanager
def on_stream() -> Iterator[None]:
    """Queue work on the capture stream inside the context, after and before the current stream's work."""
    current, stream = torch.cuda.current_stream(), capture_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def replay_turn(calls: Sequence[Call]) -> Turn:
    """Return a turn: a function that replays CUDA graphs of the calls in rotation and returns the median seconds."""
    graphs = cycle([(capture_graph(call), call) for call in calls])   # the call keeps the graph's tensors alive

    def take(repeats: int) -> float:
        """Return the median seconds per call over `repeats` replays."""
        return median(_between_events(next(graphs)[0].replay) for _ in range(repeats))

    return take


def call_turn(calls: Sequence[Call]) -> Turn:
    """Return a turn: a function that makes the calls from Python in rotation and returns the mean seconds per call."""
    rotation = cycle(calls)

    def take(repeats: int) -> float:
        """Return the mean seconds per call over `repeats` calls."""
        torch.cuda.synchronize()
        start_time = perf_counter()
        for _ in range(repeats):
            next(rotation)()
        torch.cuda.synchronize()
        return (perf_counter() - start_time) / repeats

    return take


def _between_events(replay: Call) -> float:
    """Return the seconds between events before and after a replay."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))   # type: ignore[no-untyped-call]
    torch.cuda._sleep(WAIT)   # type: ignore[no-untyped-call]
    first.record()
    replay()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def ceilings() -> dict[str, float]:
    """Measure copy and L2 read rates in GB/s and kernel launch times in microseconds, at full clocks."""
    speed_up()
    large, small = (torch.randn(size // 4, device="cuda") for size in (LARGE, SMALL))
    target, element = torch.empty_like(large), torch.zeros(1, device="cuda")
    turns = {
        "copy GB/s": (replay_turn([lambda: target.copy_(large)]), 2 * LARGE / 1e9),
        "L2 read GB/s": (replay_turn([lambda: small.sum()]), SMALL / 1e9),
    }
    rates = {name: size / median(turn(1) for _ in range(SAMPLES)) for name, (turn, size) in turns.items()}
    fill_calls = [lambda: element.fill_(1)]
    starts = {"launch us": replay_turn(fill_calls), "launch from Python us": call_turn(fill_calls)}
    return rates | {name: 1e6 * median(turn(20) for _ in range(SAMPLES)) for name, turn in starts.items()}


def speed_up() -> None:
    """Run matrix products for BUSY seconds to raise the clocks: copies at 345 MHz took 1.5 times as long."""
    a = torch.randn(4096, 4096, device="cuda")
    start_time = perf_counter()
    while perf_counter() - start_time < BUSY:
        a = torch.tanh(a @ a)
        torch.cuda.synchronize()


def state() -> dict[str, str]:
    """Return the driver version, current clocks and temperature from nvidia-smi; empty if nvidia-smi fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader"]
    try:
        values = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    except (OSError, subprocess.CalledProcessError, IndexError):
        values = []
    return dict(zip(QUERIES, values, strict=False))


def facts() -> dict[str, Any]:
    """Return the device's properties and the CUDA and cuDNN versions."""
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
    """Return the bytes of the L2 cache."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size)
