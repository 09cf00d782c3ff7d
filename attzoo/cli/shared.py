"""What the commands share: the frameworks, tables, and errors as one line."""

from __future__ import annotations

import os
import re
from codecs import lookup_error, register_error
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import typer  # noqa: TID253
from rich.console import Console  # noqa: TID253
from rich.table import Table  # noqa: TID253
from rich.text import Text  # noqa: TID253

from ..contract import shown
from ..registry import known_name

KERAS: Final = re.compile(r"^Exception encountered when calling .*?\x1b\[1m(.*)\x1b\[0m", re.DOTALL)
CODES: Final = re.compile(r"\x1b\[[0-9;]*m")   # of colours and bold letters


class Backend(StrEnum):
    """The frameworks."""

    torch = "torch"
    keras = "keras"


def backend_option(about: str) -> Any:
    """An option that takes the name of a framework."""
    return typer.Option(parser=_backend, metavar="|".join(Backend), help=about)


def _backend(word: str) -> Backend:
    try:
        return Backend(known_name("backend", word, Backend))
    except ValueError as err:
        raise typer.BadParameter(str(err)) from None


def show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; a heading with a star is of numbers, set to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in head:
        table.add_column(title.lstrip("*"), justify="right" if title.startswith("*") else "left")
    for row in rows:
        table.add_row(*map(Text, row))   # Text, or [brackets] would be taken for markup
    Console().print(table)


def say(text: str | Path) -> None:
    """A line on stdout, with the names of files as the bytes that they are, in whatever encoding."""
    typer.echo(os.fsencode(text))


def print_names_as_bytes(stream: Any) -> None:
    """Let a stream print names of files, with surrogates for what isn't text, as the bytes that they are.

    That is for Python's own stderr, which shows them as escapes; other characters that it can't encode stay escapes.
    """
    if getattr(stream, "errors", None) == "backslashreplace" and hasattr(stream, "reconfigure"):
        register_error("attzoo.names", _bytes_or_escapes)
        stream.reconfigure(errors="attzoo.names")


def _bytes_or_escapes(err: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return lookup_error("surrogateescape")(err)
    except UnicodeError:
        return lookup_error("backslashreplace")(err)


def numbers(name: str, text: str | None, none: str | None = None) -> list[int] | None:
    """[64, 64] from "64,64"; no numbers from the word `none`. `name`, of the option, is for errors."""
    if text is None:
        return None
    try:
        return [] if text == none else [int(number) for number in text.split(",")]
    except ValueError:
        other = f", or {none}" if none else ""
        raise ValueError(f"{name} must be integers with commas between{other}, got {shown(text)}") from None


def line(err: Exception) -> str:
    """An error as one line."""
    if isinstance(err, OSError) and err.filename and err.strerror:
        return f"{err.filename}: {err.strerror}"
    text = found[1] if (found := KERAS.match(str(err))) else str(err)   # Keras puts the call around it
    return " ".join(CODES.sub("", text).split()) or type(err).__name__
