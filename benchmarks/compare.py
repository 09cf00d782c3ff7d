"""Two runs of one machine, row by row: what got slower or faster beyond its spread, came, went or is wrong now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from .figures import count, seconds, times
from .report import table, together
from .runs import COPY, LEAST, Row, Run, read
from .tables import Table
from .timer import Spread

WORSE: Final = frozenset({"slower", "now wrong", "now failed", "new and wrong", "new and failed"})
Key = tuple[str, str, str]   # case, provider, clock


@dataclass(frozen=True)
class Change:
    """What became of a row: as it is now, or was where it is gone, and its time in either run."""

    what: str
    row: Row
    old: Spread | None
    new: Spread | None

    @property
    def worse(self) -> bool:
        """Ours is slower, or anybody's no longer right; others that are slower say so of the machine."""
        return self.what in WORSE and (self.what != "slower" or self.row.provider.library == "attzoo")


def compare(old: Path, new: Path, *, across: bool = False) -> tuple[str, bool]:
    """A table of what changed from one result file to another, as Markdown, and whether anything got slower or wrong.

    Raises ValueError for files of different machines, devices or torch versions, unless `across`.
    """
    before, after = read(old), read(new)
    if not across:
        together([before, after])
    found = changes(before, after)
    return told(found, before, after), any(change.worse for change in found)


def changes(old: Run, new: Run) -> list[Change]:
    """What changed, the worst first."""
    before, after = _keyed(old.rows), _keyed(new.rows)
    drift = drifted(before, after)
    found = []
    for key, row in (before | after).items():
        was, now = before.get(key), after.get(key)
        if what := _change(was, now, drift):
            found.append(Change(what, row, was.seconds if was else None, now.seconds if now else None))
    return sorted(found, key=lambda change: (not change.worse, change.what))


def drifted(before: Mapping[Key, Row], after: Mapping[Key, Row]) -> float:
    """How much longer the same copies take now: what the machine as a whole has lost."""
    pairs = [(before[key].seconds, after[key].seconds) for key in before if key in after and key[1] == str(COPY)]
    return median([new.median / old.median for old, new in pairs if old and new] or [1.0])


def _keyed(rows: Iterable[Row]) -> dict[Key, Row]:
    return {(str(row.case), str(row.provider), row.clock): row for row in rows}


def _change(old: Row | None, new: Row | None, drift: float) -> str | None:
    """What became of a row; None where nothing did, or noise would say as much."""
    if new is None:
        return "gone"
    if old is None:
        return f"new and {new.status}" if new.status in ("wrong", "failed") else "new"
    if old.status != new.status:
        return f"now {new.status}"
    return _moved(old, new, drift)


def _moved(old: Row, new: Row, drift: float) -> str | None:
    """Slower or faster where the time, that in copies and the ratio to a reference all left their quartiles alike.

    A machine that is slower as a whole moves the first alone; one whose cache is shared with others, the second too.
    """
    if old.status != "timed" or old.seconds is None or new.seconds is None:
        return None
    said = {_apart(old.seconds, new.seconds)}
    said.add(_apart(old.copies, new.copies) if old.copies and new.copies else _apart(old.seconds, new.seconds, drift))
    if old.ratio and new.ratio and old.reference == new.reference:
        said.add(_apart(old.ratio, new.ratio))
    return said.pop() if len(said) == 1 else None


def _apart(old: Spread, new: Spread, drift: float = 1.0) -> str | None:
    if new.low / drift > old.high and new.median / drift > (1 + LEAST) * old.median:
        return "slower"
    return "faster" if new.high / drift < old.low and new.median / drift < old.median / (1 + LEAST) else None


def told(found: Iterable[Change], old: Run, new: Run) -> str:
    """The changes as Markdown."""
    found = list(found)
    compared = len(_keyed(old.rows).keys() & _keyed(new.rows).keys())
    drift = drifted(_keyed(old.rows), _keyed(new.rows))
    words = (
        f"{old.commit or 'unknown'} of {old.date} -> {new.commit or 'unknown'} of {new.date}: "
        f"{count(compared, 'row')} in both, {count(len(found), 'change')}; a copy takes {times(drift)} times as long."
    )
    head = ("change", "case", "provider", "clock", "old", "new", "new / old", "why")
    return words + "\n" + ("\n" + table(Table(head, [(None, [_line(c) for c in found])])) + "\n" if found else "")


def _line(change: Change) -> list[str]:
    row, old, new = change.row, change.old, change.new
    both = times(new.median / old.median) if old and new else ""
    said = [change.what, str(row.case), str(row.provider), row.clock]
    return [*said, seconds(old), seconds(new), both, "" if change.what == "gone" else row.why or ""]
