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
from .providers import clocked_by, torch_candidates
from .runs import COPY, Provider, Row
from .subjects import Subject, create_subject, expected_results, relative_error, slack
from .timer import Cpu, Pace, Turn, interleave, paired, spread

TRIES: Final = 3
CONTROL: Final = 0.1               # largest difference of control / reference from 1
TICK: Final = 1e-6                 # approximate resolution of CUDA events in seconds
DRIFT: Final = {"graph": 0.03, "calls": 0.1}    # largest change of the copy's time over a run
WIDTH: Final = {"graph": 0.05, "calls": 0.15}   # largest interquartile range / median on CUDA
PASSES: Final = {"inference": (1, 0), "forward": (1, 0), "backward": (0, 1), "training": (1, 1)}   # forward, backward


class Candidate(Protocol):
    """A provider to measure in a case: `TorchCandidate` in torch, `KerasCandidate` in another process."""

    @property
    def provider(self) -> Provider:
        """Return the library, backend and form."""

    @property
    def family(self) -> str:
        """Return the name of the group that shares a reference."""

    def twin(self) -> Candidate:
        """Return a candidate that builds another module, equal to this one, to time the provider against itself."""

    def outputs(self) -> Sequence[Tensor]:
        """Return the output and, in training, the input gradients. Raises ModuleNotFoundError if not installed."""

    def clocks(self) -> Sequence[str]:
        """Return the names of the clocks that can time the provider."""

    def turn(self, clock: str, cpu: Cpu) -> Turn:
        """Return a turn: a function that calls the provider repeatedly and returns the seconds per call by a clock.

        cpu: the clock for turns on the CPU.
        """

    def memory(self) -> tuple[int | None, int | None]:
        """Return the bytes saved for the backward pass and the peak bytes of a training step; None if unknown."""

    def traffic(self) -> int | None:
        """Return the bytes that the operators of a call read and write; None if unknown."""


@dataclass
class Bench:
    """The settings of a run.

    Attributes:
        device: "cpu" or "cuda".
        pace: number and length of turns, by clock.
        absent: names of packages that were found not to be installed.
        cpu: the clock for turns on the CPU.

    """

    device: str
    pace: Mapping[str, Pace]
    absent: set[str] = field(default_factory=set)   # packages that are not installed
    cpu: Cpu = field(default_factory=Cpu)

    def clear(self) -> None:
        """Free memory and compiled code of earlier cases, because dynamo limits the compiled forms of a module."""
        torch._dynamo.reset()
        self.cpu.results.clear()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def sets(self, size: int) -> int:
        """Return the number of sets of inputs of `size` bytes that calls rotate over."""
        return cuda.sets(size, cuda.cache()) if self.device == "cuda" else 1


def measure(
    case: Case, bench: Bench, other_candidates: Callable[[Subject], Iterable[Candidate]] = lambda _: ()
) -> list[Row]:
    """Measure a case and return a row for each installed provider and clock.

    Args:
        case: the case.
        bench: the settings of the run.
        other_candidates: returns the candidates of a subject in frameworks other than torch.

    """
    bench.clear()
    # Only the candidate that measures the kernels uses them, not those with recorded wins or under ATTZOO_KERNELS. On a
    # GPU everything runs on the capture stream: accumulating a gradient on another stream would end the capture.
    with attzoo.kernels("eager"), cuda.on_stream() if bench.device == "cuda" else nullcontext():
        return rows_of(case, bench, other_candidates)


def rows_of(case: Case, bench: Bench, other_candidates: Callable[[Subject], Iterable[Candidate]]) -> list[Row]:
    """Return the rows of a case, as `measure` does, for callers that have set the kernels and the stream.

    Arguments are those of `measure`.
    """
    template = Row(case, COPY, "timed", moved=moved(case), flops=flops(case), parameters=parameters(case))
    try:
        subject = create_subject(case, bench.device, bench.sets)
        expected = expected_results(subject)
    except (RuntimeError, ValueError) as err:   # for example out of memory
        return [replace(template, provider=Provider("attzoo"), status="failed", why=error_line(err))]
    candidates, rows = [], []
    for candidate in (*torch_candidates(subject), *other_candidates(subject)):
        candidate_row = replace(template, provider=candidate.provider, clock=candidate.clocks()[0])
        row = verified(candidate, candidate_row, subject, expected, bench.absent)
        if row and row.status == "timed":
            saved_bytes, peak_bytes = candidate.memory()   # independent of the clock, as is the traffic
            candidates.append(
                (candidate, replace(row, kept=saved_bytes, peak=peak_bytes, traffic=candidate.traffic()))
            )
        elif row:
            rows.append(row)
    for clock in dict.fromkeys(clock for candidate, _ in candidates for clock in candidate.clocks()):
        on_clock = [(c, replace(row, clock=clock)) for c, row in candidates if clock in c.clocks()]
        rows += time_candidates(subject, on_clock, bench)
    return rows


def verified(
    candidate: Candidate, row: Row, subject: Subject, expected: Sequence[Tensor], absent: set[str]
) -> Row | None:
    """Compute a provider's outputs, and return `row` with their error and the status; None if it is not installed.

    The status is "wrong" if the error exceeds the tolerance, "failed" if an exception was raised.

    Args:
        candidate: the provider.
        row: its row without results.
        subject: the case with its tensors.
        expected: the expected output and gradients.
        absent: receives the name of a package that is not installed.
    """
    try:
        error = relative_error(candidate.outputs(), expected)
    except ModuleNotFoundError as err:
        absent.add((err.name or str(err)).partition(".")[0])
        return None
    except Exception as err:   # other libraries may raise anything
        return replace(row, status="failed", why=error_line(err))
    allowed = subject.tolerance
    if error <= allowed or error <= (allowed := allowed + slack(subject, expected)):   # false for NaN
        return replace(row, error=error)
    why = f"the relative error of output or gradients is {error:.1e}; rounding explains up to {allowed:.0e}"
    return replace(row, status="wrong", error=error, why=why)


def time_candidates(subject: Subject, candidates: Sequence[tuple[Candidate, Row]], bench: Bench) -> list[Row]:
    """Time candidates on one clock, and the copying of the first input; return all rows.

    subject: the case with its tensors. candidates: each with its row without times. bench: the settings of the run.
    """
    clock, by_family = candidates[0][1].clock, references([candidate for candidate, _ in candidates])
    reference_names = {str(c.provider): str(by_family[c.family].provider) for c, _ in candidates}
    turns, rows = prepare_turns(subject, candidates, by_family.values(), bench.cpu)
    times, unsteady_reasons = time_until_steady(turns, reference_names, clock, bench.pace[clock])
    for candidate, row in candidates:
        name = str(candidate.provider)
        if name in times:
            rows[name] = with_times(row, times, name, reference_names[name])
    if str(COPY) in times:
        copy_row = Row(subject.case, COPY, "timed", clock=clock, moved=2 * subject.case.size)
        rows[str(COPY)] = with_times(copy_row, times, str(COPY))
    for name in unsteady_reasons.keys() & rows.keys():
        rows[name] = replace(rows[name], status="unsteady", why=unsteady_reasons[name])
    return list(rows.values())


def prepare_turns(
    subject: Subject, candidates: Sequence[tuple[Candidate, Row]], family_references: Iterable[Candidate], cpu: Cpu
) -> tuple[dict[str, Turn], dict[str, Row]]:
    """Prepare the turns of the candidates, of their references' controls and of the copy.

    Args:
        subject: the case with its tensors.
        candidates: each with its row without times.
        family_references: the reference of each family of candidates.
        cpu: the clock for turns on the CPU.

    Returns:
        The turns, and a failed row for each candidate that has none, both by name.
    """
    clock = candidates[0][1].clock
    turns = {} if subject.case.network else {str(COPY): copy_turn(subject, clock)}
    failed = {}
    for candidate, row in candidates:
        try:
            turns[str(candidate.provider)] = candidate.turn(clock, cpu)
        except Exception as err:   # not every call can be captured in a graph
            failed[str(candidate.provider)] = replace(row, status="failed", why=error_line(err))
    for reference in family_references:
        if (name := str(reference.provider)) in turns:
            turns[control_name(name)] = reference.twin().turn(clock, cpu)
    return turns, failed


def time_until_steady(
    turns: Mapping[str, Turn], reference_names: Mapping[str, str], clock: str, pace: Pace
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time all turns until none is unsteady, up to TRIES times; return the last times and the reasons of `unsteady`.

    Args:
        turns: the turns by name.
        reference_names: the name of each provider's reference.
        clock: the clock of the turns.
        pace: number and length of the turns.
    """
    for _ in range(TRIES):
        times = interleave(turns, pace)
        reasons = unsteady(times, reference_names, clock)
        if not reasons:
            break
    return times, reasons


def references(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return the reference of each family: its first candidate that is not attzoo's, else its first candidate."""
    by_family: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: c.provider.library == "attzoo"):   # stable sort
        by_family.setdefault(candidate.family, candidate)
    return by_family


def copy_turn(subject: Subject, clock: str) -> Turn:
    """Return a turn that copies the subject's first input, timed by a clock.

    It does not evict the results that `Cpu` keeps alive.
    """
    targets = [torch.empty_like(x) for x, *_ in subject.sets]
    calls = [lambda x=x, y=y: y.copy_(x) for (x, *_), y in zip(subject.sets, targets, strict=True)]
    return clocked_by(clock, calls, Cpu())


def with_times(row: Row, times: Mapping[str, Sequence[float]], name: str, reference: str | None = None) -> Row:
    """Return `row`, of provider `name`, with the statistics of its times, also relative to those of its reference.

    times: seconds per call in each round, by provider.
    """
    seconds = times[name]
    row = replace(row, seconds=spread(seconds), least=min(seconds), samples=len(seconds))
    if str(COPY) in times:
        row = replace(row, copies=paired(times, name, str(COPY)))
    if reference and control_name(reference) in times:
        row = replace(row, reference=reference, control=paired(times, control_name(reference), reference))
        row = row if name == reference else replace(row, ratio=paired(times, name, reference))
    return row


def unsteady(times: Mapping[str, Sequence[float]], reference_names: Mapping[str, str], clock: str) -> dict[str, str]:
    """Return the reason for each provider whose times vary too much, by provider.

    Args:
        times: seconds per call in each round, by provider.
        reference_names: the name of each provider's reference.
        clock: the clock of the times.

    """
    reasons: dict[str, str] = {}
    for name, reference in reference_names.items():
        control = control_name(reference)
        ratio = paired(times, control, reference).median if control in times else 1.0
        if abs(ratio - 1) > CONTROL:
            reasons[name] = f"a second copy of {reference} took {ratio:.2f} times as long"
    if clock in WIDTH:
        for name, seconds in times.items():
            quartiles = spread(seconds)
            if quartiles.high - quartiles.low > max(WIDTH[clock] * quartiles.median, TICK):
                reasons[name] = f"its quartiles are more than {WIDTH[clock]:.0%} apart"
        if str(COPY) in times and (copy_drift := drift(times[str(COPY)])) > DRIFT[clock]:
            reasons |= dict.fromkeys(times, f"the time of copying changed by {copy_drift:.0%} during the run")
    return reasons


def drift(times: Sequence[float]) -> float:
    """Return the absolute relative change of the median from the first third of the times to the last third."""
    third_count = max(2, len(times) // 3)
    return abs(spread(times[-third_count:]).median / spread(times[:third_count]).median - 1)


def control_name(reference: str) -> str:
    """Return the name of a reference's control: a copy of it, whose ratio to the reference shows the noise."""
    return f"{reference} again"


def error_line(err: Exception) -> str:
    """Return an error's type and first line, at most 200 characters."""
    return f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else 'no message'}"[:200]


# ---- least bytes, operations and parameters --------------------------------------------------------------------------


def moved(case: Case) -> int:
    """Return the least bytes that a block reads and writes: each input, weight and result once. 0 for a network.

    The backward pass reads the inputs and the output's gradient and writes the inputs' gradients.
    """
    if case.network:
        return 0
    inputs, output = sum(map(prod, case.shapes)), prod(case.shapes[0])
    weights = sum(int(weight.size) for weight in spec_of(case).weights.values())
    forward, backward = PASSES[case.mode]
    return case.width * (forward * (inputs + weights + output) + backward * (2 * inputs + 2 * weights + output))


def flops(case: Case) -> int:
    """Return the floating-point operations of a block's linear maps: 2 per multiply-add, backward twice forward."""
    if case.network:
        return 0
    forward, backward = PASSES[case.mode]
    macs: int = spec_of(case).macs(*case.shapes)
    return 2 * macs * (forward + 2 * backward)


def parameters(case: Case) -> int:
    """Return the number of trainable parameters of a block. 0 for a network."""
    if case.network:
        return 0
    return sum(int(weight.size) for weight in spec_of(case).weights.values() if weight.trainable)
