"""The report's sections on every row, problems, omitted cases, missing packages and the conditions of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .cases import MODES
from .figures import memory, quartiles, rate, seconds, times
from .runs import Row, Run
from .selection import NETWORKS, Entry, clock_name, setting, shapes_text
from .tables import Section, Table

HEAD: Final = ("provider", "verdict", "time", "copies", "ratio", "control", "error", "saved MiB", "peak MiB", "GB/s")


def all_rows(entries: Sequence[Entry], block: str) -> Section:
    """Return the section with every row of a block, grouped by setting and mode."""
    block_entries = [entry for entry in entries if entry.row.case.block == block]
    keys = [(chosen, mode) for chosen in dict.fromkeys(setting(entry.row) for entry in block_entries) for mode in MODES]
    by_key = {
        key: [entry for entry in block_entries if (setting(entry.row), entry.row.case.mode) == key] for key in keys
    }
    groups = [
        (_title([entry.row for entry in group]), [_cells(entry) for entry in group])
        for group in by_key.values()
        if group
    ]
    name = "the networks without a block" if block == "none" else block
    return Section(f"Every row: {name}", [Table(["run", *HEAD], groups)])


def _title(rows: Sequence[Row]) -> str:
    """Return the title of a group of rows: its case, clock and references."""
    case = rows[0].case
    network = f"{NETWORKS.get(case.network, case.network)}, " if case.network else ""
    references = " and ".join(dict.fromkeys(row.reference for row in rows if row.ratio and row.reference))
    variant = f"variant {case.variant}, " if case.variant else ""
    shapes = shapes_text(case)
    title = f"{network}{variant}{shapes}, {case.dtype}, {case.layout}, {case.mode}, {clock_name(rows[0].clock)}"
    return f"{title}; ratios to {references}" if references else title


def _cells(entry: Entry) -> list[str]:
    """Return the table cells of a row: run, provider, verdict, times, ratios, error, memory and rate."""
    row = entry.row
    cells = [str(row.provider), _verdict(row), seconds(row.seconds), quartiles(row.copies), quartiles(row.ratio)]
    cells += [quartiles(row.control), f"{row.error:.0e}" if row.error is not None else ""]
    x = None if row.case.network else row.case.size
    ceiling = entry.run.ceilings.get("copy GB/s")
    return [entry.label, *cells, memory(row.kept, x), memory(row.peak, x), rate(row, ceiling)]


def _verdict(row: Row) -> str:
    """Return the row's verdict; "reference" for the reference, "" for a timed row without a ratio."""
    if row.verdict != "timed":
        return row.verdict
    return "reference" if str(row.provider) == row.reference else ""


def problems(entries: Sequence[Entry]) -> Section:
    """Return the section on rows that are wrong, failed or unsteady, with the reasons."""
    lines = [
        [entry.label, str(entry.row.case), str(entry.row.provider), entry.row.status,
         entry.row.why or "no reason was recorded"]
        for entry in entries if entry.row.status != "timed"
    ]   # fmt: skip
    headings = ["run", "case", "provider", "status", "why"]
    text = (
        "Wrong: the error of the output or a gradient exceeds rounding. Failed: an exception was raised. These are not "
        "timed. Unsteady: the copy, the control or the provider's own times varied too much, also when timed "
        "again; these times are listed above but give no verdict."
    )
    return Section("What went wrong", [text, Table(headings, [(None, lines)])] if lines else [])


def left_out(runs: Sequence[Run]) -> Section:
    """Return the section on cases for which there was no time."""
    lines = [[str(i), case] for i, run in enumerate(runs, 1) for case in run.left]
    return Section("Left out for time", [Table(["run", "case"], [(None, lines)])] if lines else [])


def absent_packages(runs: Sequence[Run]) -> Section:
    """Return the section on packages that are not installed."""
    lines = [[str(i), package, command] for i, run in enumerate(runs, 1) for package, command in run.absent.items()]
    headings = ["run", "package", "to install it"]
    return Section("Not installed, so not measured", [Table(headings, [(None, lines)])] if lines else [])


def conditions(runs: Sequence[Run]) -> Section:
    """Return the section on command, date, commit, machine, versions, flags and machine limits of each run."""
    groups = [(f"run {i}" if len(runs) > 1 else None, _conditions(run)) for i, run in enumerate(runs, 1)]
    return Section("Conditions", [Table(["condition", "value"], groups)])


def _conditions(run: Run) -> list[list[str]]:
    """Return a table line for each condition of a run, such as its command, machine and versions."""
    run_facts = {"command": run.command, "date": run.date, "commit": run.commit or "unknown", "suite": run.suite}
    versions = {name: number for name, number in run.versions.items() if number}
    ceilings = {name: times(number) for name, number in run.ceilings.items()}
    parts = [run_facts, {"device": run.device}, run.machine, versions, run.flags, ceilings]
    return [[name, _value_text(value)] for part in parts for name, value in part.items()]


def _value_text(value: object) -> str:
    """Return a condition's value as text."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
