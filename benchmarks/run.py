"""Measure the cases of a suite one after the other, show the progress and write the result file."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import attzoo
from attzoo.extras import install_command

from . import cuda, facts, runs, warm
from .cases import Case
from .keras_candidates import open_keras_candidates
from .measure import Bench, Candidate, error_line, measure
from .peers import INSTALL
from .runs import Provider, Row, Run
from .subjects import Subject
from .suites import MINUTES, SUITES, Suite, suite
from .timer import Pace
from .workers import BACKENDS

KerasCandidates = Callable[[Subject], Iterable[Candidate]]

RESULTS: Final = Path(__file__).parent / "results"
# By clock. For "graph", each replay is a sample.
THOROUGH: Final = {"cpu": Pace(21, 0.02, 5.0), "graph": Pace(200, 0.0), "calls": Pace(30, 0.01, 6.0)}
SHORT: Final = {"cpu": THOROUGH["cpu"], "graph": Pace(60, 0.0), "calls": Pace(11, 0.005, 2.0)}
PACE: Final = {
    "quick": {"cpu": Pace(9, 0.02, 5.0), "graph": Pace(200, 0.0), "calls": Pace(15, 0.01, 5.0)},
    "full": THOROUGH,
    "kernels": THOROUGH,
    "wins": SHORT,
    "networks": SHORT,
    "blocks": SHORT | {"cpu": Pace(11, 0.02, 5.0)},
}
# Relative time that a form of a case takes, for the estimate of the remaining time.
WEIGHT: Final = {"eager": 1.0, "peer compiled": 7.0, "compiled": 15.0, "keras": 8.0}


def run(name: str, device: str, blocks: Sequence[str] = (), out: Path | None = None) -> tuple[Run, Path]:
    """Measure a suite and write the result file, also if interrupted by Ctrl-C.

    Args:
        name: name of the suite.
        device: "cpu" or "cuda".
        blocks: names of the blocks to measure; empty for all.
        out: result file; None for a new one in benchmarks/results.

    Returns:
        The run and the path of the result file.

    Raises:
        ValueError: the suite, device or a block is unknown, or CUDA is not available.
        FileExistsError: the file exists. It is raised before anything is measured.

    """
    chosen = select(name, device, blocks)
    flags = facts.configure(device)
    bench = Bench(device, PACE[name])
    load = facts.load()
    if device == "cuda":
        warm.compile_ahead(chosen.cases)
    result = new_run(name, device, flags, load)
    path = out or RESULTS / f"{result.date[:10]}_{device}_{name}_{(result.commit or 'unknown')[:7]}.json"
    runs.check_new(path)
    with open_keras_candidates(device, bench.absent) as keras_candidates:
        rows, remaining = measure_cases(chosen, bench, keras_candidates)
    conditions_after = {"load after": facts.load()} | state(device, "after")
    result = replace(
        result,
        rows=rows,
        left=[str(case) for case in remaining],
        absent={package: install(package) for package in sorted(bench.absent)},
        machine={**result.machine, **conditions_after},
    )
    runs.write(path, result)
    return result, path


def new_run(name: str, device: str, flags: dict[str, Any], load: Sequence[float]) -> Run:
    """Return a run without rows, with the current conditions and the machine's limits.

    Args:
        name: name of the suite.
        device: "cpu" or "cuda".
        flags: settings that affect speed.
        load: load averages before the run.

    """
    return Run(
        suite=name,
        device=device,
        command=command(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=facts.commit(),
        machine=facts.machine(device) | {"load before": load} | state(device, "before"),
        versions=facts.versions(),
        flags=flags | {"pace": {clock: asdict(pace) for clock, pace in PACE[name].items()}},
        ceilings=facts.ceilings(device),
        absent={},
        rows=(),
    )


def command() -> str:
    """Return the command line, with absolute paths shortened to file names."""
    arguments = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks", *arguments])


def install(package: str) -> str:
    """Return the command that installs a package."""
    return install_command(package) if package in (*BACKENDS, "keras", "triton") else INSTALL


def state(device: str, suffix: str) -> dict[str, str]:
    """Return the GPU's clocks and temperature, with `suffix`, "before" or "after", in the names; empty on a CPU."""
    return {f"{name} {suffix}": value for name, value in cuda.state().items()} if device == "cuda" else {}


def select(name: str, device: str, blocks: Sequence[str]) -> Suite:
    """Return the suite of these blocks, or of all. Raises ValueError for an unknown name, device or block."""
    for argument, value, known in (("suite", name, tuple(SUITES)), ("device", device, ("cpu", "cuda"))):
        if value not in known:
            raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value!r}")
    if (name, device) not in MINUTES:
        raise ValueError(f"device must be cuda for suite {name}, got {device}: set --device cuda or another --suite")
    unknown = [block for block in blocks if block not in attzoo.names()]
    if unknown:
        raise ValueError(f"blocks must be among {', '.join(attzoo.names())}, got {', '.join(unknown)}")
    return suite(name, device, blocks)


def measure_cases(chosen: Suite, bench: Bench, keras_candidates: KerasCandidates) -> tuple[list[Row], Sequence[Case]]:
    """Measure cases until the suite's time is over or Ctrl-C; return the rows and the remaining cases.

    Args:
        chosen: the suite.
        bench: the settings of the run.
        keras_candidates: returns the Keras candidates of a subject.
    """
    rows: list[Row] = []
    start_time = monotonic()
    with progress() as display:
        task = display.add_task("", total=len(chosen.cases), left="")
        for number, case in enumerate(chosen.cases):
            elapsed = monotonic() - start_time
            if elapsed > 60 * chosen.minutes:
                return rows, chosen.cases[number:]
            time_left = f"about {minutes_left(chosen, number, elapsed):.0f} min left"
            display.update(task, completed=number, description=str(case), left=time_left)
            try:
                rows += measure(case, bench, keras_candidates)
            except KeyboardInterrupt:
                return rows, chosen.cases[number:]
            except Exception as err:   # for example out of memory; the other cases are still measured
                rows.append(Row(case, Provider("attzoo"), "failed", why=error_line(err)))
        display.update(task, completed=len(chosen.cases), description="done", left="")
    return rows, ()


def minutes_left(chosen: Suite, number: int, elapsed: float) -> float:
    """Estimate the minutes for the cases from index `number` on; at most what is left of the suite's time.

    elapsed: seconds since the start. The estimate uses the relative times of forms in WEIGHT.
    """
    weights = [sum(WEIGHT[form] for form in case.forms) for case in chosen.cases]
    done_weight, remaining_weight = sum(weights[:number]), sum(weights[number:])
    estimate = elapsed / done_weight * remaining_weight / 60 if done_weight else chosen.minutes
    return min(estimate, chosen.minutes - elapsed / 60)


def progress() -> Progress:
    """Return a progress bar on standard error, disabled if that is not a terminal."""
    texts = TextColumn("{task.fields[left]}"), TextColumn("{task.description}")
    console = Console(stderr=True)
    return Progress(BarColumn(24), MofNCompleteColumn(), *texts, console=console, disable=not console.is_terminal)


def summary(result: Run) -> str:
    """Return a text with counts of rows and verdicts, the number of omitted cases, and missing packages."""
    counts = Counter(row.verdict for row in result.rows if row.provider.library == "attzoo")
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    lines = [f"{len(result.rows)} rows; of attzoo's, {verdicts or 'none'}"]
    if result.left:
        lines.append(f"{len(result.left)} cases left out for time, from {result.left[0]} on")
    if result.absent:
        commands = " && ".join(dict.fromkeys(result.absent.values()))
        lines.append(f"not installed: {', '.join(result.absent)}; to install: {commands}")
    return "\n".join(lines)
