"""The sections of a report, in order: text, tables and names of pictures. report.py writes them as Markdown or HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from .by_size import beside_references, block_costs
from .comparisons import comparison, verdict_counts
from .costs import costs, forms
from .details import absent_packages, all_rows, conditions, left_out, problems
from .figures import count
from .fused import kernels
from .runs import Row, Run
from .selection import CLOCKS, NETWORKS, blocks, entries, environment, machine_name, pairs
from .tables import Section, Table
from .throughput import network


def sections(runs: Sequence[Run]) -> list[Section]:
    """Return the sections of a report, without empty ones, and without the column "run" for a single run."""
    rows = entries(runs)
    candidates = [
        summary(runs),
        block_costs(rows),
        beside_references(rows),
        comparison(rows),
        kernels(rows),
        costs(rows),
        *(network(rows, name) for name in NETWORKS),
        forms(rows),
        Section("How to read the figures", READING),
        *(all_rows(rows, block) for block in blocks(entry.row for entry in rows)),
        problems(rows),
        left_out(runs),
        absent_packages(runs),
        conditions(runs),
    ]
    nonempty = [section for section in candidates if section.parts]
    return nonempty if len(runs) > 1 else [_without_run_column(section) for section in nonempty]


def _without_run_column(section: Section) -> Section:
    """Return the section without the column "run" of its tables."""
    return replace(section, parts=[_drop_run(part) if isinstance(part, Table) else part for part in section.parts])


def _drop_run(table: Table) -> Table:
    """Return the table without its column "run"."""
    if table.head[0] != "run":
        return table
    return Table(table.head[1:], [(title, [row[1:] for row in rows]) for title, rows in table.groups])


READING: Final = (
    "Times are medians, with quartiles in brackets. Copies is the time divided by the time of copying the first input "
    "x once, in the same rounds. It shows the cost of a block independently of the machine, where memory is the "
    "bottleneck. Ratio is a provider's time divided by the reference's, round by round. Control is the same ratio of "
    "the reference to itself: its distance from 1 is noise. Faster and slower mean a difference of 5 % or more, with "
    "quartiles of ratio and control that do not overlap; otherwise the verdict is same.",
    "Error is the largest relative error of the output and of the inputs' gradients, by norm, compared with attzoo's "
    "block in float64; a provider whose error exceeds rounding is not timed. Saved is the memory that autograd saves "
    "for the backward pass besides inputs and parameters. Peak is the most memory in use at once in a training step, "
    "besides inputs and weights. Both are also given in multiples of x. GB/s counts each input and weight read once "
    "and each result written once; its percentage is of this machine's copy rate. Small inputs that stay in a cache "
    "can exceed 100 %.",
)   # fmt: skip


def summary(runs: Sequence[Run]) -> Section:
    """Return the section on what was measured, on which machines, and how attzoo and its eager peers compare."""
    rows = [row for run in runs for row in run.rows]
    machines = dict.fromkeys(
        f"{machine_name(run)} ({run.device}, torch {environment(run)['torch']})" for run in runs
    )   # fmt: skip
    statuses = Counter(row.status for row in rows)
    cases = len({row.case for row in rows})
    counts = f"{count(cases, 'case')}, {count(statuses['timed'], 'timing')}" if rows else "nothing was timed"
    untimed_text = ", ".join(f"{n} {status}" for status, n in statuses.items() if status != "timed")
    text = [f"Measured on {' and '.join(machines)}: {counts}{f'; {untimed_text}' if untimed_text else ''}."]
    if rows:
        text.append(f"{_clocks_text(rows)} All providers of a case are timed alternately in the same rounds, after "
                    "their outputs and gradients have been verified against the block in float64.")
    if any(run.device == "cpu" for run in runs):
        text.append("CPU timings of one thread; not comparable with a GPU's.")
    if len({str(environment(run)) for run in runs}) > 1:
        text.append("The runs are from several machines: a time of one says nothing about a time of another.")
    return Section("Summary", [*text, *_verdicts_text(rows)])


def _clocks_text(rows: Iterable[Row]) -> str:
    """Return a sentence that names the clocks of the rows; "" without timed rows."""
    clocks = dict.fromkeys(row.clock for row in rows if row.seconds)
    return f"A time is {'; or '.join(CLOCKS.get(clock, clock) for clock in clocks)}." if clocks else ""


def _verdicts_text(rows: Iterable[Row]) -> list[str]:
    """Return a sentence that counts the verdicts on attzoo and its eager peers; empty without such pairs."""
    eager = [pair for pair in pairs(rows) if pair.eager]
    if not eager:
        return []
    verdicts = verdict_counts(eager).replace("same", "the same")
    return [f"Of {count(len(eager), 'comparison')} of attzoo with an eager peer, attzoo is {verdicts}."]
