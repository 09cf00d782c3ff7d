"""What the commands share: the frameworks, tables, and errors as one line."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from rich.console import Console  # noqa: TID253
from rich.table import Table  # noqa: TID253
from rich.text import Text  # noqa: TID253


class Backend(StrEnum):
    """The frameworks."""

    torch = "torch"
    keras = "keras"


def show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; a heading with a star is of numbers, set to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in head:
        table.add_column(title.lstrip("*"), justify="right" if title.startswith("*") else "left")
    for row in rows:
        table.add_row(*map(Text, row))   # Text, or [brackets] would be taken for markup
    Console().print(table)


def numbers(name: str, text: str | None, none: str | None = None) -> list[int] | None:
    """[64, 64] from "64,64"; no numbers from the word `none`. `name`, of the option, is for errors."""
    if text is None:
        return None
    try:
        return [] if text == none else [int(number) for number in text.split(",")]
    except ValueError:
        other = f", or {none}" if none else ""
        raise ValueError(f"{name} must be integers with commas between{other}, got {text!r}") from None


def line(err: Exception) -> str:
    """An error as one line."""
    if isinstance(err, OSError) and err.filename and err.strerror:
        return f"{err.filename}: {err.strerror}"
    return " ".join(str(err).split()) or type(err).__name__
