"""Time providers in turns. All providers take a turn in each round, and ratios are taken within a round.

A slowdown of the machine then affects all providers alike. A turn calls a provider repeatedly and returns the seconds
per call. The clocks are `Cpu` here, those in cuda.py, and those of other processes in workers.py.
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

FEWEST: Final = 7   # smallest number of rounds with meaningful quartiles
KEPT_RESULTS: Final = 8   # number of results kept alive: 50 MB for the smallest timed block, more than a core's cache
Call = Callable[[], Any]        # the call to time; its result is kept alive or waited for
Turn = Callable[[int], float]   # number of calls -> seconds per call


@dataclass(frozen=True)
class Pace:
    """How often and how long providers are timed.

    Attributes:
        rounds: the number of rounds.
        turn: the seconds that a turn fills with calls.
        limit: the limit in seconds for all rounds.

    """

    rounds: int
    turn: float
    limit: float = float("inf")


@dataclass(frozen=True)
class Spread:
    """The quartiles of a sample."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the quartiles of at least two values."""
    return Spread(*quantiles(values, n=4, method="inclusive"))


def paired(times: Mapping[str, Sequence[float]], name: str, reference: str) -> Spread:
    """Return the quartiles over rounds of a provider's time / the reference's time in the same round."""
    return spread(
        [seconds / reference_seconds for seconds, reference_seconds in zip(times[name], times[reference], strict=True)]
    )


def interleave(turns: Mapping[str, Turn], pace: Pace) -> dict[str, list[float]]:
    """Return the seconds per call of each provider in every round.

    Each provider has one turn in a round. The order is shuffled in every round, because a provider is affected by what
    the previous one leaves in the cache and the allocator. A turn makes as many calls as fit into `pace.turn` seconds,
    at least one. If all rounds would exceed `pace.limit` seconds, there are fewer, at least FEWEST.
    """
    repeats, round_seconds = {}, 1e-6
    for name, turn in turns.items():
        turn(1)   # the first call includes one-time work
        seconds = max(turn(1), 1e-6)
        repeats[name] = max(1, int(pace.turn / seconds))
        round_seconds += repeats[name] * seconds
    times: dict[str, list[float]] = {name: [] for name in turns}
    order, generator = list(turns), Random(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(max(min(FEWEST, pace.rounds), int(min(pace.rounds, pace.limit / round_seconds)))):
            generator.shuffle(order)
            for name in order:
                times[name].append(turns[name](repeats[name]))
    finally:
        gc.enable()
    return times


class Cpu:
    """Turns timed by the CPU time of this thread, which other programs do not add to.

    The last KEPT_RESULTS results of all providers stay in memory, so that every call writes to memory that is not in
    the cache, as in a network. Otherwise the allocator would determine over how many addresses the results rotate;
    three instead of two made a small block 10 % slower.
    """

    def __init__(self, clock: Callable[[], float] = thread_time) -> None:
        self.clock = clock
        self.results: deque[object] = deque(maxlen=KEPT_RESULTS)

    def turn(self, call: Call) -> Turn:
        """Return a turn: a function that makes a call repeatedly and returns the mean seconds of CPU time per call."""

        def take(repeats: int) -> float:
            """Return the mean seconds of CPU time per call over `repeats` calls."""
            start_time = self.clock()
            for _ in range(repeats):
                self.results.append(call())
            return (self.clock() - start_time) / repeats

        return take
