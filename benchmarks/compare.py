"""Compare two runs row by row: rows that became slower, faster, wrong, new or gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from .figures import count, seconds, times
from .report import check_comparable, table
from .runs import COPY, MIN_DIFFERENCE, Row, Run, read
from .tables import Table
from .timer import Spread

WORSE: Final = frozenset({"slower", "now wrong", "now failed", "new and wrong", "new and failed"})
Key = tuple[str, str, str]   # case, provider, clock


@dataclass(frozen=True)
class Change:
    """A row that differs between two runs.

    Attributes:
        kind: what has changed, such as "slower" or "gone"; see `_change`.
        row: the new row, or the old row if there is no new one.
        old: its time in seconds in the earlier run; None without one.
        new: its time in seconds in the later run; None without one.

    """

    kind: str
    row: Row
    old: Spread | None
    new: Spread | None

    @property
    def worse(self) -> bool:
        """Whether attzoo is slower, or any provider is wrong or failed. Slower peers mean a slower machine."""
        return self.kind in WORSE and (self.kind != "slower" or self.row.provider.library == "attzoo")


def compare(old: Path, new: Path, *, across: bool = False) -> tuple[str, bool]:
    """Return a Markdown table of the changes from result file `old` to `new`, and whether any is for the worse.

    Raises ValueError if the files are of different machines, devices or torch versions, unless `across`.
    """
    old_run, new_run = read(old), read(new)
    if not across:
        check_comparable([old_run, new_run])
    changed = changes(old_run, new_run)
    return to_markdown(changed, old_run, new_run), any(change.worse for change in changed)


def changes(old: Run, new: Run) -> list[Change]:
    """Return the rows that changed from run `old` to run `new`, changes for the worse first."""
    old_rows, new_rows = _keyed(old.rows), _keyed(new.rows)
    drift = drifted(old_rows, new_rows)
    changed = []
    for key, row in (old_rows | new_rows).items():
        old_row, new_row = old_rows.get(key), new_rows.get(key)
        if kind := _change(old_row, new_row, drift):
            old_time, new_time = (row.seconds if row else None for row in (old_row, new_row))
            changed.append(Change(kind, row, old_time, new_time))
    return sorted(changed, key=lambda change: (not change.worse, change.kind))


def drifted(old_rows: Mapping[Key, Row], new_rows: Mapping[Key, Row]) -> float:
    """Return the slowdown of the machine between two runs, given as rows by (case, provider, clock).

    It is the median ratio of the new to the old time of the copies that both runs have timed.
    """
    row_pairs = [
        (old_rows[key].seconds, new_rows[key].seconds) for key in old_rows if key in new_rows and key[1] == str(COPY)
    ]
    return median([new.median / old.median for old, new in row_pairs if old and new] or [1.0])


def _keyed(rows: Iterable[Row]) -> dict[Key, Row]:
    """Return the rows by (case, provider, clock)."""
    return {(str(row.case), str(row.provider), row.clock): row for row in rows}


def _change(old: Row | None, new: Row | None, drift: float) -> str | None:
    """Return what has changed in a row; None if it is unchanged or within the noise.

    The result is "slower", "faster", "gone", "new", "new and wrong", "new and failed", or "now" and the new status.
    `drift` is the slowdown of the machine.
    """
    if new is None:
        return "gone"
    if old is None:
        return f"new and {new.status}" if new.status in ("wrong", "failed") else "new"
    if old.status != new.status:
        return f"now {new.status}"
    return _moved(old, new, drift)


def _moved(old: Row, new: Row, drift: float) -> str | None:
    """Return "slower" or "faster" if time, time in copies and ratio to the reference all say so, else None.

    A slower machine changes only the time. A cache shared with other programs also changes the time in copies. If the
    time in copies is unknown, the time divided by `drift`, the slowdown of the machine, is compared.
    """
    if old.status != "timed" or old.seconds is None or new.seconds is None:
        return None
    directions = {_direction(old.seconds, new.seconds)}
    if old.copies and new.copies:
        directions.add(_direction(old.copies, new.copies))
    else:
        directions.add(_direction(old.seconds, new.seconds, drift))
    if old.ratio and new.ratio and old.reference == new.reference:
        directions.add(_direction(old.ratio, new.ratio))
    return directions.pop() if len(directions) == 1 else None


def _direction(old: Spread, new: Spread, drift: float = 1.0) -> str | None:
    """Return "slower" or "faster" if the quartiles are disjoint and the medians differ by MIN_DIFFERENCE, else None.

    MIN_DIFFERENCE is a fraction. New times are divided by `drift` first.
    """
    if new.low / drift > old.high and new.median / drift > (1 + MIN_DIFFERENCE) * old.median:
        return "slower"
    return "faster" if new.high / drift < old.low and new.median / drift < old.median / (1 + MIN_DIFFERENCE) else None


def to_markdown(changed: Iterable[Change], old: Run, new: Run) -> str:
    """Return the changes from run `old` to run `new` as a Markdown table."""
    changed = list(changed)
    compared = len(_keyed(old.rows).keys() & _keyed(new.rows).keys())
    drift = drifted(_keyed(old.rows), _keyed(new.rows))
    words = (
        f"{old.commit or 'unknown'} of {old.date} -> {new.commit or 'unknown'} of {new.date}: "
        f"{count(compared, 'row')} in both, {count(len(changed), 'change')}; a copy takes {times(drift)} times as long."
    )
    head = ("change", "case", "provider", "clock", "old", "new", "new / old", "why")
    return words + "\n" + ("\n" + table(Table(head, [(None, [_line(c) for c in changed])])) + "\n" if changed else "")


def _line(change: Change) -> list[str]:
    """Return the table cells of a change: kind, case, provider, clock, both times, their ratio, and the reason."""
    row, old, new = change.row, change.old, change.new
    ratio = times(new.median / old.median) if old and new else ""
    cells = [change.kind, str(row.case), str(row.provider), row.clock]
    return [*cells, seconds(old), seconds(new), ratio, "" if change.kind == "gone" else row.why or ""]
