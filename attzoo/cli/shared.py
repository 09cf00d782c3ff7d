"""Options, tables and error texts that several commands use."""

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

from ..contract import short_repr
from ..registry import known_name
from ..train.data import NORMALISATIONS

KERAS_ERROR: Final = re.compile(r"^Exception encountered when calling .*?\x1b\[1m(.*)\x1b\[0m", re.DOTALL)
NORMALISE: Final = f"Normalisation: {', '.join(f'{name} ({text})' for name, text in NORMALISATIONS.items())}."
COLOR_CODES: Final = re.compile(r"\x1b\[[0-9;]*m")


class Backend(StrEnum):
    """Names of the frameworks."""

    torch = "torch"
    keras = "keras"


def backend_option(text: str) -> Any:
    """Return a command-line option for the name of a framework, with this help text."""
    return typer.Option(parser=_backend, metavar="|".join(Backend), help=text)


def _backend(word: str) -> Backend:
    """Return the framework of this name. Raise BadParameter for an unknown name."""
    try:
        return Backend(known_name("backend", word, Backend))
    except ValueError as err:
        raise typer.BadParameter(str(err)) from None


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. `headings` has the titles of its columns; a title with a leading star is right-aligned."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in headings:
        table.add_column(title.lstrip("*"), justify="right" if title.startswith("*") else "left")
    for row in rows:
        table.add_row(*map(Text, row))   # a str with [brackets] would be parsed as markup
    Console().print(table)


def print_path(text: str | Path) -> None:
    """Print a line on stdout. File names in it are printed as the bytes of the file system, whatever their encoding."""
    typer.echo(os.fsencode(text))


def print_names_as_bytes(stream: Any) -> None:
    """Make stderr print bytes of file names that are not text unchanged, instead of as escapes. Changes `stream`.

    Other characters that it cannot encode are still escaped.
    """
    if getattr(stream, "errors", None) == "backslashreplace" and hasattr(stream, "reconfigure"):
        register_error("attzoo.names", _bytes_or_escapes)
        stream.reconfigure(errors="attzoo.names")


def _bytes_or_escapes(err: UnicodeError) -> tuple[str | bytes, int]:
    """Return characters that cannot be encoded as bytes, if they stand for undecodable bytes, or as escapes.

    An error handler for `codecs.register_error`: it returns the replacement and the position after it.
    """
    try:
        return lookup_error("surrogateescape")(err)
    except UnicodeError:
        return lookup_error("backslashreplace")(err)


def parse_integers(name: str, text: str | None, none: str | None = None) -> list[int] | None:
    """Return the integers of a comma-separated text.

    Args:
        name: the name of the option without "--", for the error.
        text: the value of the option, such as "64,64". None returns None.
        none: a word, such as "own", for which an empty list is returned.

    Raises:
        ValueError: `text` is neither integers with commas nor the word `none`.

    """
    if text is None:
        return None
    try:
        return [] if text == none else [int(number) for number in text.split(",")]
    except ValueError:
        none_text = f", or {none}" if none else ""
        raise ValueError(f"--{name} must be integers separated by commas{none_text}, got {short_repr(text)}") from None


def parse_numbers(name: str, text: str | None) -> list[float] | None:
    """Return the numbers of a comma-separated text, or None for None.

    Args:
        name: the name of the option without "--", for the error.
        text: the value of the option, such as "1,1,2.5".

    Raises:
        ValueError: `text` is not numbers with commas.
    """
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} must be numbers separated by commas, got {short_repr(text)}") from None


def one_line(err: Exception) -> str:
    """Return the text of an error on one line, without colours, or its class name if it has no text."""
    if isinstance(err, OSError) and err.filename and err.strerror:
        return f"{err.filename}: {err.strerror}"
    text = match[1] if (match := KERAS_ERROR.match(str(err))) else str(err)   # Keras adds the call around it
    return " ".join(COLOR_CODES.sub("", text).split()) or type(err).__name__
