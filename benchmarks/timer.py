"""The protocol: providers take turns in rounds, so that what slows the machine slows them all; ratios within a round.

A turn calls a provider so many times and says how long one call took. The clocks that turns are made on: `Cpu` here,
CUDA's in cuda.py, other processes' in workers.py.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import quantiles
from time import thread_time
from typing import Any, Final

FEWEST: Final = 7   # rounds, of which quartiles still say something
KEPT: Final = 8   # results; of the smallest block that is timed they make 50 MB, more than a core's share of cache
Call = Callable[[], Any]        # what is timed; its result is kept, or waited for
Turn = Callable[[int], float]   # so many calls -> seconds that one of them took


@dataclass(frozen=True)
class Pace:
    """How many rounds, how many seconds a turn fills with calls, and for how many seconds all rounds may last."""

    rounds: int
    turn: float
    limit: float = float("inf")


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


def interleave(turns: Mapping[str, Turn], pace: Pace) -> dict[str, list[float]]:
    """Seconds per call of each provider in every round.

    One round gives each provider a turn, in an order drawn anew: what a provider leaves in the cache and in the
    allocator, the next one finds, and that must not always be the same one. Within a turn a provider is called as often
    as fits, once at least; where all rounds would last too long there are fewer, FEWEST at least.
    """
    repeats, lasts = {}, 1e-6
    for name, turn in turns.items():
        turn(1)   # the first call pays for what is set up once
        once = max(turn(1), 1e-6)
        repeats[name] = max(1, int(pace.turn / once))
        lasts += repeats[name] * once
    times: dict[str, list[float]] = {name: [] for name in turns}
    order, drawn = list(turns), Random(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(max(min(FEWEST, pace.rounds), int(min(pace.rounds, pace.limit / lasts)))):
            drawn.shuffle(order)
            for name in order:
                times[name].append(turns[name](repeats[name]))
    finally:
        gc.enable()
    return times


class Cpu:
    """Turns on the CPU time of this thread, which does not count while another program has the core.

    The last results of all providers are kept alive, so that every call writes to memory that is not in the cache, as
    in a network. Without that it is up to the allocator how many places a provider's results take turns in, and three
    instead of two made a small block 10 % slower.
    """

    def __init__(self, clock: Callable[[], float] = thread_time) -> None:
        self.clock = clock
        self.kept: deque[object] = deque(maxlen=KEPT)

    def turn(self, call: Call) -> Turn:
        """Turns of `call`."""

        def take(repeats: int) -> float:
            began = self.clock()
            for _ in range(repeats):
                self.kept.append(call())
            return (self.clock() - began) / repeats

        return take
