"""Measure a case: verify each provider, time them in rounds, and repeat unsteady measurements."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import prod
from typing import Final, Protocol

import torch
from torch import Tensor

import attzoo

from . import cuda
from .cases import Case, spec_of
from .providers import clocked_by, contenders
from .runs import COPY, Provider, Row
from .subjects import Subject, expected_results, relative_error, slack, subject
from .timer import Cpu, Pace, Turn, interleave, paired, spread

TRIES: Final = 3
CONTROL: Final = 0.1               # largest deviation of reference / reference from 1
TICK: Final = 1e-6                 # approximate resolution of CUDA events in seconds
DRIFT: Final = {"graph": 0.03, "calls": 0.1}    # largest change of the copy's time over a run
WIDTH: Final = {"graph": 0.05, "calls": 0.15}   # largest interquartile range / median on CUDA
PASSES: Final = {"inference": (1, 0), "forward": (1, 0), "backward": (0, 1), "training": (1, 1)}   # forward, backward


class Racer(Protocol):
    """A provider that computes a case: `Contender` in torch, `KerasContender` in another process."""

    @property
    def provider(self) -> Provider:
        """Return the provider."""

    @property
    def family(self) -> str:
        """Return the name of the group that shares a reference."""

    def twin(self) -> Racer:
        """Return a copy with another module, for the control."""

    def outputs(self) -> Sequence[Tensor]:
        """Return the output and, in training, the input gradients. Raises ModuleNotFoundError if not installed."""

    def clocks(self) -> Sequence[str]:
        """Return the clocks on which it can be timed."""

    def turn(self, clock: str, cpu: Cpu) -> Turn:
        """Return a turn on one of the clocks."""

    def memory(self) -> tuple[int | None, int | None]:
        """Return the bytes saved for the backward pass and the peak bytes of a training step; None if unknown."""


@dataclass
class Bench:
    """The settings of a run: the device and the pace by clock."""

    device: str
    pace: Mapping[str, Pace]
    absent: set[str] = field(default_factory=set)   # packages that are not installed
    cpu: Cpu = field(default_factory=Cpu)

    def clear(self) -> None:
        """Free memory and compiled code of earlier cases: dynamo limits the number of compiled forms per module."""
        torch._dynamo.reset()
        self.cpu.results.clear()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def sets(self, size: int) -> int:
        """Return the number of sets of inputs of `size` bytes that calls rotate over."""
        return cuda.sets(size, cuda.cache()) if self.device == "cuda" else 1


def measure(case: Case, bench: Bench, others: Callable[[Subject], Iterable[Racer]] = lambda it: ()) -> list[Row]:
    """Measure a case and return a row for each installed provider and clock.

    `others` returns the providers besides torch.
    """
    bench.clear()
    # Recorded wins and ATTZOO_KERNELS must not choose kernels; only a contender does. On a GPU everything runs on the
    # capture stream: accumulating a gradient on another stream would end the capture.
    with attzoo.kernels("eager"), cuda.on_stream() if bench.device == "cuda" else nullcontext():
        return rows_of(case, bench, others)


def rows_of(case: Case, bench: Bench, others: Callable[[Subject], Iterable[Racer]]) -> list[Row]:
    """Return the rows of a case, without setting kernels and stream."""
    blank = Row(case, COPY, "timed", moved=moved(case), flops=flops(case))
    try:
        it = subject(case, bench.device, bench.sets)
        expected = expected_results(it)
    except (RuntimeError, ValueError) as err:   # for example out of memory
        return [replace(blank, provider=Provider("attzoo"), status="failed", why=line(err))]
    racers, rows = [], []
    for racer in (*contenders(it), *others(it)):
        named = replace(blank, provider=racer.provider, clock=racer.clocks()[0])
        row = verified(racer, named, it, expected, bench.absent)
        if row and row.status == "timed":
            kept, peak = racer.memory()   # independent of the clock
            racers.append((racer, replace(row, kept=kept, peak=peak)))
        elif row:
            rows.append(row)
    for clock in dict.fromkeys(clock for racer, _ in racers for clock in racer.clocks()):
        rows += race(it, [(r, replace(row, clock=clock)) for r, row in racers if clock in r.clocks()], bench)
    return rows


def verified(racer: Racer, row: Row, it: Subject, expected: Sequence[Tensor], absent: set[str]) -> Row | None:
    """Compute the provider's outputs and return the row with its error and status; None if not installed.

    The status is "wrong" if the error exceeds the tolerance, "failed" if an exception was raised.
    """
    try:
        error = relative_error(racer.outputs(), expected)
    except ModuleNotFoundError as err:
        absent.add((err.name or str(err)).partition(".")[0])
        return None
    except Exception as err:   # other libraries may raise anything
        return replace(row, status="failed", why=line(err))
    allowed = it.tolerance
    if error <= allowed or error <= (allowed := allowed + slack(it, expected)):   # NaN is not
        return replace(row, error=error)
    why = f"output or gradient is {error:.1e} off, as a part of its norm; rounding is up to {allowed:.0e}"
    return replace(row, status="wrong", error=error, why=why)


def race(it: Subject, racers: Sequence[tuple[Racer, Row]], bench: Bench) -> list[Row]:
    """Time the racers of one clock and the copy, and return their rows."""
    clock, leaders = racers[0][1].clock, references([racer for racer, _ in racers])
    beside = {str(racer.provider): str(leaders[racer.family].provider) for racer, _ in racers}
    turns, rows = started(it, racers, leaders.values(), bench.cpu)
    times, shaky = steadied(turns, beside, clock, bench.pace[clock])
    for racer, row in racers:
        who = str(racer.provider)
        if who in times:
            rows[who] = clocked(row, times, who, beside[who])
    if str(COPY) in times:
        rows[str(COPY)] = clocked(Row(it.case, COPY, "timed", clock=clock, moved=2 * it.case.size), times, str(COPY))
    doubtful = {who: replace(rows[who], status="unsteady", why=why) for who, why in shaky.items() if who in rows}
    return list((rows | doubtful).values())


def started(
    it: Subject, racers: Sequence[tuple[Racer, Row]], leaders: Iterable[Racer], cpu: Cpu
) -> tuple[dict[str, Turn], dict[str, Row]]:
    """Return the turns of the racers, controls and copy by name, and the rows of racers without a turn."""
    clock = racers[0][1].clock
    turns = {} if it.case.network else {str(COPY): copy_turn(it, clock)}
    failed = {}
    for racer, row in racers:
        try:
            turns[str(racer.provider)] = racer.turn(clock, cpu)
        except Exception as err:   # not every call can be captured in a graph
            failed[str(racer.provider)] = replace(row, status="failed", why=line(err))
    for name, leader in ((str(leader.provider), leader) for leader in leaders):
        if name in turns:
            turns[again(name)] = leader.twin().turn(clock, cpu)
    return turns, failed


def steadied(
    turns: Mapping[str, Turn], beside: Mapping[str, str], clock: str, pace: Pace
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time all turns up to TRIES times until none is unsteady; return the times and the unsteady names with reasons."""
    for _ in range(TRIES):
        times = interleave(turns, pace)
        shaky = unsteady(times, beside, clock)
        if not shaky:
            break
    return times, shaky


def references(racers: Sequence[Racer]) -> dict[str, Racer]:
    """Return the reference of each family: its first racer that is not attzoo's, else its first racer."""
    first: dict[str, Racer] = {}
    for racer in sorted(racers, key=lambda racer: racer.provider.library == "attzoo"):   # the sort is stable
        first.setdefault(racer.family, racer)
    return first


def copy_turn(it: Subject, clock: str) -> Turn:
    """Return a turn that copies the first input. It does not evict the results that `Cpu` keeps alive."""
    targets = [torch.empty_like(x) for x, *_ in it.sets]
    calls = [lambda x=x, y=y: y.copy_(x) for (x, *_), y in zip(it.sets, targets, strict=True)]
    return clocked_by(clock, calls, Cpu())


def clocked(row: Row, times: Mapping[str, Sequence[float]], who: str, reference: str | None = None) -> Row:
    """Return the row with the statistics of its provider's times."""
    mine = times[who]
    row = replace(row, seconds=spread(mine), least=min(mine), samples=len(mine))
    if str(COPY) in times:
        row = replace(row, copies=paired(times, who, str(COPY)))
    if reference and again(reference) in times:
        row = replace(row, reference=reference, control=paired(times, again(reference), reference))
        row = row if who == reference else replace(row, ratio=paired(times, who, reference))
    return row


def unsteady(times: Mapping[str, Sequence[float]], beside: Mapping[str, str], clock: str) -> dict[str, str]:
    """Return the reason by name of unsteady provider. `beside` has the reference by name."""
    why: dict[str, str] = {}
    for who, reference in beside.items():
        control = paired(times, again(reference), reference).median if again(reference) in times else 1.0
        if abs(control - 1) > CONTROL:
            why[who] = f"{reference} beside itself took {control:.2f} of its time"
    if clock in WIDTH:
        for who, mine in times.items():
            quartiles = spread(mine)
            if quartiles.high - quartiles.low > max(WIDTH[clock] * quartiles.median, TICK):
                why[who] = f"its quartiles are more than {WIDTH[clock]:.0%} apart"
        if str(COPY) in times and (moved := drift(times[str(COPY)])) > DRIFT[clock]:
            why |= dict.fromkeys(times, f"copying changed by {moved:.0%} meanwhile")
    return why


def drift(times: Sequence[float]) -> float:
    """Return the relative change of the median from the first third of the times to the last."""
    third = max(2, len(times) // 3)
    return abs(spread(times[-third:]).median / spread(times[:third]).median - 1)


def again(reference: str) -> str:
    """Return the name of the reference's control. Its ratio to the reference shows the noise."""
    return f"{reference} again"


def line(err: Exception) -> str:
    """Return an error's type and first line, at most 200 characters."""
    return f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else 'without a word'}"[:200]


# ---- least bytes and operations --------------------------------------------------------------------------------------


def moved(case: Case) -> int:
    """Return the least bytes that a block reads and writes: each input, weight and result once. 0 for a network.

    The backward pass reads the inputs and the output's gradient and writes the inputs' gradients.
    """
    if case.network:
        return 0
    ins, out = sum(map(prod, case.shapes)), prod(case.shapes[0])
    weights = sum(int(weight.size) for weight in spec_of(case).weights.values())
    forward, backward = PASSES[case.mode]
    return case.width * (forward * (ins + weights + out) + backward * (2 * ins + 2 * weights + out))


def flops(case: Case) -> int:
    """Return the floating-point operations of a block's linear maps: 2 per multiply-add, backward twice forward."""
    if case.network:
        return 0
    forward, backward = PASSES[case.mode]
    macs: int = spec_of(case).macs(*case.shapes)
    return 2 * macs * (forward + 2 * backward)
