"""One case from its providers to its rows: verified, timed in rounds, thrown out and repeated where it is unsteady."""

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
CONTROL: Final = 0.1               # that the reference may come out beside itself
TICK: Final = 1e-6                 # seconds that CUDA's events tell apart, about
DRIFT: Final = {"graph": 0.03, "calls": 0.1}    # that copying may change from the first third of rounds to the last,
WIDTH: Final = {"graph": 0.05, "calls": 0.15}   # and quartile distance / median that is steady, on CUDA
PASSES: Final = {"inference": (1, 0), "forward": (1, 0), "backward": (0, 1), "training": (1, 1)}   # forward, backward


class Racer(Protocol):
    """Anybody who computes a case; `Contender` in torch, and Keras in a process of its own."""

    @property
    def provider(self) -> Provider:
        """Who."""

    @property
    def family(self) -> str:
        """Whose times are set beside each other."""

    def twin(self) -> Racer:
        """The same once more, with a module of its own."""

    def outputs(self) -> Sequence[Tensor]:
        """Output, and in training the inputs' gradients. Raises what goes wrong, ModuleNotFoundError when absent."""

    def clocks(self) -> Sequence[str]:
        """On which it can be timed."""

    def turn(self, clock: str, cpu: Cpu) -> Turn:
        """Turns on one of them."""

    def memory(self) -> tuple[int | None, int | None]:
        """Kept and peak bytes, where they are known."""


@dataclass
class Bench:
    """How a run measures: where, and at which pace by clock."""

    device: str
    pace: Mapping[str, Pace]
    absent: set[str] = field(default_factory=set)   # packages that were asked for in vain
    cpu: Cpu = field(default_factory=Cpu)

    def clear(self) -> None:
        """Free what an earlier case holds; of what is compiled, more than a few forms of one module are not kept."""
        torch._dynamo.reset()
        self.cpu.kept.clear()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def sets(self, size: int) -> int:
        """How many sets of inputs of `size` bytes calls rotate over."""
        return cuda.sets(size, cuda.cache()) if self.device == "cuda" else 1


def measure(case: Case, bench: Bench, others: Callable[[Subject], Iterable[Racer]] = lambda it: ()) -> list[Row]:
    """A row for every provider that is installed and every clock; `others` computes the case besides torch."""
    bench.clear()
    # Neither wins nor the environment choose kernels, but a contender may. On a GPU everything runs on the stream that
    # graphs are captured on: a gradient that is to be added on another one would end the capture.
    with attzoo.kernels("eager"), cuda.on_stream() if bench.device == "cuda" else nullcontext():
        return rows_of(case, bench, others)


def rows_of(case: Case, bench: Bench, others: Callable[[Subject], Iterable[Racer]]) -> list[Row]:
    """What `measure` gives."""
    blank = Row(case, COPY, "timed", moved=moved(case), flops=flops(case))
    try:
        it = subject(case, bench.device, bench.sets)
        expected = expected_results(it)
    except (RuntimeError, ValueError) as err:   # too large for the memory here, say
        return [replace(blank, provider=Provider("attzoo"), status="failed", why=line(err))]
    racers, rows = [], []
    for racer in (*contenders(it), *others(it)):
        named = replace(blank, provider=racer.provider, clock=racer.clocks()[0])
        row = verified(racer, named, it, expected, bench.absent)
        if row and row.status == "timed":
            kept, peak = racer.memory()   # the same on every clock
            racers.append((racer, replace(row, kept=kept, peak=peak)))
        elif row:
            rows.append(row)
    for clock in dict.fromkeys(clock for racer, _ in racers for clock in racer.clocks()):
        rows += race(it, [(r, replace(row, clock=clock)) for r, row in racers if clock in r.clocks()], bench)
    return rows


def verified(racer: Racer, row: Row, it: Subject, expected: Sequence[Tensor], absent: set[str]) -> Row | None:
    """The row with its error, "wrong" where that is more than rounding; None for a provider that is not installed."""
    try:
        error = relative_error(racer.outputs(), expected)
    except ModuleNotFoundError as err:
        absent.add((err.name or str(err)).partition(".")[0])
        return None
    except Exception as err:   # whatever a library of somebody else's raises is its row's outcome
        return replace(row, status="failed", why=line(err))
    allowed = it.tolerance
    if error <= allowed or error <= (allowed := allowed + slack(it, expected)):   # NaN is not
        return replace(row, error=error)
    why = f"output or gradient is {error:.1e} off, as a part of its norm; rounding is up to {allowed:.0e}"
    return replace(row, status="wrong", error=error, why=why)


def race(it: Subject, racers: Sequence[tuple[Racer, Row]], bench: Bench) -> list[Row]:
    """The rows of those who share a clock, with their times, and that of the copy."""
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
    """Turns of everybody, of the leaders once more and of the copy; and the rows of those who could not begin."""
    clock = racers[0][1].clock
    turns = {} if it.case.network else {str(COPY): copy_turn(it, clock)}
    failed = {}
    for racer, row in racers:
        try:
            turns[str(racer.provider)] = racer.turn(clock, cpu)
        except Exception as err:   # not everything can be captured in a graph
            failed[str(racer.provider)] = replace(row, status="failed", why=line(err))
    for name, leader in ((str(leader.provider), leader) for leader in leaders):
        if name in turns:
            turns[again(name)] = leader.twin().turn(clock, cpu)
    return turns, failed


def steadied(
    turns: Mapping[str, Turn], beside: Mapping[str, str], clock: str, pace: Pace
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Everybody's times, and who cannot be believed though all was thrown out and repeated up to TRIES times."""
    for _ in range(TRIES):
        times = interleave(turns, pace)
        shaky = unsteady(times, beside, clock)
        if not shaky:
            break
    return times, shaky


def references(racers: Sequence[Racer]) -> dict[str, Racer]:
    """Family -> whom the others of it are set beside: the first that is not attzoo's, if there is one."""
    first: dict[str, Racer] = {}
    for racer in sorted(racers, key=lambda racer: racer.provider.library == "attzoo"):   # stable: else in their order
        first.setdefault(racer.family, racer)
    return first


def copy_turn(it: Subject, clock: str) -> Turn:
    """Turns that copy the first input; results that are kept alive for others stay so."""
    targets = [torch.empty_like(x) for x, *_ in it.sets]
    calls = [lambda x=x, y=y: y.copy_(x) for (x, *_), y in zip(it.sets, targets, strict=True)]
    return clocked_by(clock, calls, Cpu())


def clocked(row: Row, times: Mapping[str, Sequence[float]], who: str, reference: str | None = None) -> Row:
    """The row with what its provider's times say."""
    mine = times[who]
    row = replace(row, seconds=spread(mine), least=min(mine), samples=len(mine))
    if str(COPY) in times:
        row = replace(row, copies=paired(times, who, str(COPY)))
    if reference and again(reference) in times:
        row = replace(row, reference=reference, control=paired(times, again(reference), reference))
        row = row if who == reference else replace(row, ratio=paired(times, who, reference))
    return row


def unsteady(times: Mapping[str, Sequence[float]], beside: Mapping[str, str], clock: str) -> dict[str, str]:
    """Who cannot be believed, and why; `beside`: who -> the reference."""
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
    """By which part the last third differs from the first."""
    third = max(2, len(times) // 3)
    return abs(spread(times[-third:]).median / spread(times[:third]).median - 1)


def again(reference: str) -> str:
    """What a twin of the reference is called: how it compares with itself is noise."""
    return f"{reference} again"


def line(err: Exception) -> str:
    """An error's kind and its first line."""
    return f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else 'without a word'}"[:200]


# ---- what cannot be avoided ------------------------------------------------------------------------------------------


def moved(case: Case) -> int:
    """Bytes of a block alone: every input and weight read once and every result written once; 0 for a network.

    Backward, the inputs and the output's gradient are read, and the inputs' gradients written.
    """
    if case.network:
        return 0
    ins, out = sum(map(prod, case.shapes)), prod(case.shapes[0])
    weights = sum(int(weight.size) for weight in spec_of(case).weights.values())
    forward, backward = PASSES[case.mode]
    return case.width * (forward * (ins + weights + out) + backward * (2 * ins + 2 * weights + out))


def flops(case: Case) -> int:
    """Twice the multiply-adds of a block's linear maps, as its spec counts them; backward is twice forward."""
    if case.network:
        return 0
    forward, backward = PASSES[case.mode]
    macs: int = spec_of(case).macs(*case.shapes)
    return 2 * macs * (forward + 2 * backward)
