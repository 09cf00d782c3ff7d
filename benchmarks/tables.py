"""What a report is made of: sections, with words and tables under a heading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NUMBERS: Final = frozenset(   # what columns of numbers are called
    ("time", "copies", "ratio", "control", "error", "kept MiB", "peak MiB", "GB/s", "images/s", "of plain",
     "times eager peer", "times best compiled", "old", "new", "new / old")
)


@dataclass(frozen=True)
class Table:
    """Rows of cells in groups, each under a title of its own or none."""

    head: Sequence[str]
    groups: Sequence[tuple[str | None, Sequence[Sequence[str]]]]

    @property
    def numbers(self) -> list[bool]:
        """Which columns hold numbers; the others hold words."""
        return [head.rpartition(": ")[2] in NUMBERS for head in self.head]


@dataclass(frozen=True)
class Section:
    """A heading, and what stands under it: words, and tables."""

    title: str
    parts: Sequence[str | Table]
    name: str = ""   # of the pictures that go with it
