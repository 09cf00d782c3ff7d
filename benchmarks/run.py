"""A whole run: a suite's cases one after the other, with a word on how long it will take, into one file."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import attzoo
from attzoo.extras import install_command

from . import cuda, facts, runs, warm
from .cases import Case
from .keras_contenders import keras_contenders
from .measure import Bench, Racer, line, measure
from .peers import INSTALL
from .runs import Provider, Row, Run
from .subjects import Subject
from .suites import MINUTES, SUITES, Suite, suite
from .timer import Pace
from .workers import BACKENDS

Others = Callable[[Subject], Iterable[Racer]]

RESULTS: Final = Path(__file__).parent / "results"
# By clock; of graphs, every replay is a sample of its own.
THOROUGH: Final = {"cpu": Pace(21, 0.02, 5.0), "graph": Pace(200, 0.0), "calls": Pace(30, 0.01, 6.0)}
SHORT: Final = {"cpu": THOROUGH["cpu"], "graph": Pace(60, 0.0), "calls": Pace(11, 0.005, 2.0)}
PACE: Final = {
    "quick": {"cpu": Pace(9, 0.02, 5.0), "graph": Pace(200, 0.0), "calls": Pace(15, 0.01, 5.0)},
    "full": THOROUGH,
    "kernels": THOROUGH,
    "wins": SHORT,
    "networks": SHORT,
}
# Of a case's forms, to guess how long it takes.
WEIGHT: Final = {"eager": 1.0, "peer compiled": 7.0, "compiled": 15.0, "keras": 8.0}


def run(name: str, device: str, blocks: Sequence[str] = (), out: Path | None = None) -> tuple[Run, Path]:
    """Measure a suite, of these blocks or of all, and write its file; what Ctrl-C cuts short is written too.

    Raises ValueError for an unknown suite, device or block and FileExistsError for a file that is there, before
    anything is measured.
    """
    chosen = checked(name, device, blocks)
    flags = facts.configure(device)
    bench = Bench(device, PACE[name])
    load = facts.load()
    if device == "cuda":
        warm.compile_ahead(chosen.cases)
    made = Run(
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
    path = out or RESULTS / f"{made.date[:10]}_{device}_{name}_{(made.commit or 'unknown')[:7]}.json"
    runs.vacant(path)
    with keras_contenders(device, bench.absent) as others:
        rows, left = measured(chosen, bench, others)
    after = {"load after": facts.load()} | state(device, "after")
    made = replace(
        made,
        rows=rows,
        left=[str(case) for case in left],
        absent={package: install(package) for package in sorted(bench.absent)},
        machine={**made.machine, **after},
    )
    runs.write(path, made)
    return made, path


def command() -> str:
    """How the run was started; of files outside the working folder only the names, which say enough."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks", *words])


def install(package: str) -> str:
    """How to get what was absent."""
    return install_command(package) if package in (*BACKENDS, "keras", "triton") else INSTALL


def state(device: str, when: str) -> dict[str, str]:
    """How hot and fast a GPU is, before and after."""
    return {f"{name} {when}": value for name, value in cuda.state().items()} if device == "cuda" else {}


def checked(name: str, device: str, blocks: Sequence[str]) -> Suite:
    """The suite. Raises ValueError for what there is none of."""
    for what, got, known in (("suite", name, tuple(SUITES)), ("device", device, ("cpu", "cuda"))):
        if got not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}, got {got!r}")
    if (name, device) not in MINUTES:
        raise ValueError(f"suite {name} needs a CUDA device, got {device}")
    unknown = [block for block in blocks if block not in attzoo.names()]
    if unknown:
        raise ValueError(f"blocks must be of {', '.join(attzoo.names())}, got {', '.join(unknown)}")
    return suite(name, device, blocks)


def measured(chosen: Suite, bench: Bench, others: Others) -> tuple[list[Row], Sequence[Case]]:
    """Rows of the cases that there is time for, and the cases for which there is none, or that Ctrl-C prevents."""
    rows: list[Row] = []
    began = monotonic()
    with progress() as shown:
        task = shown.add_task("", total=len(chosen.cases), left="")
        for number, case in enumerate(chosen.cases):
            spent = monotonic() - began
            if spent > 60 * chosen.minutes:
                return rows, chosen.cases[number:]
            left = f"about {minutes_left(chosen, number, spent):.0f} min left"
            shown.update(task, completed=number, description=str(case), left=left)
            try:
                rows += measure(case, bench, others)
            except KeyboardInterrupt:
                return rows, chosen.cases[number:]
            except Exception as err:   # out of memory, a device that gave up: what was measured until then is kept
                rows.append(Row(case, Provider("attzoo"), "failed", why=line(err)))
        shown.update(task, completed=len(chosen.cases), description="done", left="")
    return rows, ()


def minutes_left(chosen: Suite, number: int, spent: float) -> float:
    """A guess: the rest takes as long as what was measured in `spent` seconds, by weight; no longer than there is."""
    weights = [sum(WEIGHT[form] for form in case.forms) for case in chosen.cases]
    done, rest = sum(weights[:number]), sum(weights[number:])
    guess = spent / done * rest / 60 if done else chosen.minutes
    return min(guess, chosen.minutes - spent / 60)


def progress() -> Progress:
    """A bar on standard error; where that is no terminal, nothing."""
    said = TextColumn("{task.fields[left]}"), TextColumn("{task.description}")
    console = Console(stderr=True)
    return Progress(BarColumn(24), MofNCompleteColumn(), *said, console=console, disable=not console.is_terminal)


def summary(made: Run) -> str:
    """What came of a run, in a line or two."""
    counts = Counter(row.verdict for row in made.rows if row.provider.library == "attzoo")
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    lines = [f"{len(made.rows)} rows; of attzoo's, {said or 'none'}"]
    if made.left:
        lines.append(f"{len(made.left)} cases left out, for time: {made.left[0]} and after")
    if made.absent:
        lines.append(f"not installed: {', '.join(made.absent)}; {' && '.join(dict.fromkeys(made.absent.values()))}")
    return "\n".join(lines)
