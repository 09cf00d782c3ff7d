"""The report's section on fused kernels: times in copies, speedups over the peer, and the goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attzoo.fast.cases import Goal, Marks

from .figures import percent, times
from .goals import goal, goals
from .runs import FUSED, Row
from .selection import Entry, blocks, setting, shapes_text, throughput_fraction, time_ratio
from .tables import Section, Table

WORDS: Final = (
    "Copies is the time of a call divided by that of copying x. The next two columns are the speedups over the eager "
    "peer and over its fastest compiled form; they are empty if that was not timed. All are of the GPU's own time. "
    "Accept and aim are the required and the desired values, in the same order: copies at most, speedups at least. "
    "These goals apply to an H200 only."
)
IN_RESNET: Final = (
    "Images per second of a ResNet-50 with the block, as a percentage of the plain network's. The aim applies to "
    "training on an H200."
)
HEAD: Final = ("run", "block", "case", "mode", "copies", "times eager peer", "times best compiled", "accept", "aim")
RESNET_HEAD: Final = ("run", "block", "mode", "fused: of plain", "eager: of plain", "peer: of plain", "aim: of plain")


def kernels(entries: Sequence[Entry]) -> Section:
    """Return the section on the rows of fused kernels, of blocks alone and in a ResNet-50."""
    fused_rows = [entry for entry in entries if entry.row.provider == FUSED]
    block_lines = [
        _line(entry, _same_setting(entry, entries))
        for block in blocks(entry.row for entry in fused_rows)
        for entry in fused_rows
        if entry.row.case.block == block and entry.row.case.network is None and entry.row.clock != "calls"
    ]
    resnet_rows = [entry for entry in fused_rows if entry.row.case.network == "resnet50"]
    resnet_lines = [_resnet_line(entry, _same_setting(entry, entries)) for entry in resnet_rows]
    parts: list[str | Table] = [WORDS, Table(HEAD, [(None, block_lines)])] if block_lines else []
    parts += [IN_RESNET, Table(RESNET_HEAD, [(None, resnet_lines)])] if resnet_lines else []
    return Section("Fused kernels", parts)


def _same_setting(entry: Entry, entries: Sequence[Entry]) -> list[Row]:
    """Return the rows of the entry's run with its setting and mode, also those of other blocks and without a block."""
    mode, chosen_setting = entry.row.case.mode, setting(entry.row)
    rows = [candidate.row for candidate in entries if candidate.run is entry.run and candidate.row.case.mode == mode]
    return [row for row in rows if setting(row) == chosen_setting]


def _line(entry: Entry, rows: Sequence[Row]) -> list[str]:
    """Return the table cells of the fused kernels of a block alone: case, time in copies, speedups and goals.

    rows: the rows of the same setting and mode.
    """
    row, case = entry.row, entry.row.case
    variant = f"{case.variant}, " if case.variant else ""
    cells = [entry.label, case.block, f"{variant}{shapes_text(case)}, {case.dtype}, {case.layout}", case.mode]
    limits = goal(case)
    if not row.seconds:
        return [*cells, row.status, "", "", *_goal_cells(limits)]
    values = row.copies.median if row.copies else None, *speedups(row, rows)
    copies_cell, *speedup_cells = [_value_cell(value, i, limits) for i, value in enumerate(values)]
    time_cell = copies_cell if row.status == "timed" else f"{row.status}: {copies_cell}"
    return [*cells, time_cell, *speedup_cells, *_goal_cells(limits)]


def speedups(row: Row, rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """Return the speedups of a row over its eager peer and over the peer's fastest compiled form; None if not timed."""
    peer_rows = [peer for peer in rows if peer.provider.library == row.reference != "attzoo"]
    ratios = {
        peer.provider.form: 1 / ratio.median
        for peer in peer_rows if peer.case == row.case and (ratio := time_ratio(row, peer))
    }   # fmt: skip
    compiled_speedups = [speedup for form, speedup in ratios.items() if form.startswith("compiled")]
    return ratios.get("eager"), min(compiled_speedups, default=None)


def _value_cell(value: float | None, index: int, limits: Goal | None) -> str:
    """Return a value as text, followed by "aim", "accept" or "missed" if there is a goal.

    index: position of the value's limit in `Marks`.
    """
    if value is None:
        return ""
    return f"{times(value)} ({reached(value, index, limits)})" if limits else times(value)


def reached(value: float, index: int, limits: Goal) -> str:
    """Return "aim" or "accept" if a value meets that limit, else "missed". `index` is its position in Marks."""
    for name, limit in (("aim", limits.aim[index]), ("accept", limits.accept[index])):
        if value <= limit if index == 0 else value >= limit:
            return name
    return "missed"


def _goal_cells(limits: Goal | None) -> list[str]:
    """Return two table cells: the accepted and the desired limits of a goal; "" without a goal."""
    return [_marks_text(limits.accept), _marks_text(limits.aim)] if limits else ["", ""]


def _marks_text(marks: Marks) -> str:
    """Return the three limits of a goal as text, separated by commas."""
    return ", ".join(f"{mark:g}" for mark in marks)


def _resnet_line(entry: Entry, rows: Sequence[Row]) -> list[str]:
    """Return the table cells of a ResNet-50: throughput with fused, eager and the peer's blocks, and the aim."""
    case = entry.row.case
    eager_rows = [row for row in rows if row.case == case and row.provider.form == "eager"]
    our_row = next((row for row in eager_rows if row.provider.library == "attzoo"), None)
    peer_row = next((row for row in eager_rows if row.provider.library != "attzoo"), None)
    cells = [_fraction_cell(row, rows) for row in (entry.row, our_row, peer_row)]
    aim = goals(case.block).resnet50 if case.mode == "training" else None
    return [entry.label, case.block, case.mode, *cells, percent(aim) if aim else ""]


def _fraction_cell(row: Row | None, rows: Sequence[Row]) -> str:
    """Return the throughput relative to the network without a block as text, or the row's status if that is unknown."""
    if row is None:
        return ""
    fraction = throughput_fraction(row, rows)
    return percent(fraction) if fraction else row.status
