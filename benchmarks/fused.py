"""What a report says of the fused kernels: beside a copy, the eager peer, the best of its compiled forms, the goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attzoo.fast.cases import Goal, Marks

from .figures import percent, times
from .goals import goal, goals
from .picking import Entry, against, blocks, fraction, setting, size
from .runs import FUSED, Row
from .tables import Section, Table

WORDS: Final = (
    "How many copies of x a call takes, and how many times as fast it is as the eager peer and as the best of that "
    "one's compiled forms, by the GPU's own time; empty where the other was not timed. Goals stand in the same order, "
    "at most so many copies and at least so many times as fast. They are for an H200, and say nothing of another "
    "device."
)
IN_RESNET: Final = (
    "In a ResNet-50, the part of the plain network's images per second that is left with the block in it. The goal is "
    "for training on an H200."
)
HEAD: Final = ("run", "block", "case", "mode", "copies", "times eager peer", "times best compiled", "accept", "aim")
RESNET_HEAD: Final = ("run", "block", "mode", "fused: of plain", "eager: of plain", "peer: of plain", "aim: of plain")


def kernels(found: Sequence[Entry]) -> Section:
    """The fused kernels' rows: of blocks, and in a ResNet-50."""
    mine = [entry for entry in found if entry.row.provider == FUSED]
    alone = [
        _line(entry, _beside(entry, found))
        for block in blocks(entry.row for entry in mine)
        for entry in mine
        if entry.row.case.block == block and entry.row.case.network is None and entry.row.clock != "calls"
    ]
    within = [_parts(entry, _beside(entry, found)) for entry in mine if entry.row.case.network == "resnet50"]
    parts: list[str | Table] = [WORDS, Table(HEAD, [(None, alone)])] if alone else []
    parts += [IN_RESNET, Table(RESNET_HEAD, [(None, within)])] if within else []
    return Section("Fused kernels", parts)


def _beside(entry: Entry, found: Sequence[Entry]) -> list[Row]:
    """The rows of the same run, in the same setting and mode, of networks also without a block."""
    mode, which = entry.row.case.mode, setting(entry.row)
    same = [other.row for other in found if other.run is entry.run and other.row.case.mode == mode]
    return [row for row in same if setting(row) == which]


def _line(entry: Entry, beside: Sequence[Row]) -> list[str]:
    row, case = entry.row, entry.row.case
    variant = f"{case.variant}, " if case.variant else ""
    cells = [entry.label, case.block, f"{variant}{size(case)}, {case.dtype}, {case.layout}", case.mode]
    wanted = goal(case)
    if not row.seconds:
        return [*cells, row.status, "", "", *_goals(wanted)]
    found = row.copies.median if row.copies else None, *speeds(row, beside)
    marked = [_marked(value, i, wanted) for i, value in enumerate(found)]
    return [*cells, marked[0] if row.status == "timed" else f"{row.status}: {marked[0]}", *marked[1:], *_goals(wanted)]


def speeds(row: Row, beside: Sequence[Row]) -> tuple[float | None, float | None]:
    """How many times as fast a row is as its eager peer, and as the best of the compiled forms of that."""
    of_peer = [other for other in beside if other.provider.library == row.reference != "attzoo"]
    ratios = {
        other.provider.form: 1 / ratio.median
        for other in of_peer if other.case == row.case and (ratio := against(row, other))
    }   # fmt: skip
    compiled = [speed for form, speed in ratios.items() if form.startswith("compiled")]
    return ratios.get("eager"), min(compiled, default=None)


def _marked(value: float | None, which: int, wanted: Goal | None) -> str:
    """A number, and which of its goals it reaches."""
    if value is None:
        return ""
    return f"{times(value)} ({reached(value, which, wanted)})" if wanted else times(value)


def reached(value: float, which: int, wanted: Goal) -> str:
    """Whether a number, the first of Marks or another, is as aimed at, accepted, or missed."""
    for what, mark in (("aim", wanted.aim[which]), ("accept", wanted.accept[which])):
        if value <= mark if which == 0 else value >= mark:
            return what
    return "missed"


def _goals(wanted: Goal | None) -> list[str]:
    return [_said(wanted.accept), _said(wanted.aim)] if wanted else ["", ""]


def _said(marks: Marks) -> str:
    return ", ".join(f"{mark:g}" for mark in marks)


def _parts(entry: Entry, beside: Sequence[Row]) -> list[str]:
    """What is left of a plain ResNet-50's throughput with a block: fused, eager, and the peer's."""
    case = entry.row.case
    eager = [row for row in beside if row.case == case and row.provider.form == "eager"]
    ours = next((row for row in eager if row.provider.library == "attzoo"), None)
    peer = next((row for row in eager if row.provider.library != "attzoo"), None)
    cells = [_part(row, beside) for row in (entry.row, ours, peer)]
    part = goals(case.block).resnet50 if case.mode == "training" else None
    aim = percent(part) if part else ""
    return [entry.label, case.block, case.mode, *cells, aim]


def _part(row: Row | None, beside: Sequence[Row]) -> str:
    if row is None:
        return ""
    part = fraction(row, beside)
    return percent(part) if part else row.status
