"""The contents of a report: sections with text and tables under a heading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NUMBERS: Final = frozenset(   # heads of columns of numbers
    ("parameters", "MACs", "MiB moved", "time", "copies", "ratio", "control", "error", "saved MiB", "peak MiB", "GB/s",
     "images/s", "of plain", "times eager peer", "times best compiled", "old", "new", "new / old")
)


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        head: titles of the columns.
        groups: groups of lines, each with a title or None, and with the cells of each line.

    """

    head: Sequence[str]
    groups: Sequence[tuple[str | None, Sequence[Sequence[str]]]]

    @property
    def numbers(self) -> list[bool]:
        """Return for each column whether it holds numbers."""
        return [head.rpartition(": ")[2] in NUMBERS for head in self.head]


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        title: its heading.
        parts: texts and tables, in order.
        name: key of its pictures in `plots.pictures`.

    """

    title: str
    parts: Sequence[str | Table]
    name: str = ""
