"""Timing that a busy machine bends little: CPU time of one thread, interleaved rounds, ratios within a round."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from time import thread_time
from typing import Final

KEPT: Final = 8   # results; of the smallest block that is timed they make 50 MB, more than a core's share of cache


@dataclass(frozen=True)
class Spread:
    """Quartiles of a sample."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The quartiles of at least two values."""
    return Spread(*quantiles(values, n=4, method="inclusive"))


def paired(times: Mapping[str, Sequence[float]], name: str, reference: str) -> Spread:
    """Quartiles of the ratio of two providers' times, taken round by round: what slows a whole round cancels."""
    return spread([a / b for a, b in zip(times[name], times[reference], strict=True)])


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = thread_time,
) -> dict[str, list[float]]:
    """Seconds per call of each provider in every round.

    One round calls each provider in turn, the next in reverse order. Within a turn a provider is called often enough
    to fill about `seconds`, all providers equally often. `clock` is this thread's CPU time: preemption does not count.
    The last results are kept alive, so that every call writes to memory that is not in the cache, as in a network.
    Without that it is up to the allocator how many places a provider's results take turns in, and three instead of
    two made a small block 10 % slower.
    """
    kept: deque[object] = deque(maxlen=KEPT)
    slowest = 0.0
    for call in calls.values():
        call()   # the first call pays for what is set up once
        began = clock()
        call()
        slowest = max(slowest, clock() - began)
    repeats = max(1, int(seconds / max(slowest, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
                call = calls[name]
                began = clock()
                for _ in range(repeats):
                    kept.append(call())
                times[name].append((clock() - began) / repeats)
    finally:
        gc.enable()
    return times
