"""The report's sections on the time and memory of each block at its base case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from .cases import BOTH
from .comparisons import comparison_table
from .figures import memory, quartiles, seconds
from .runs import COPY, Provider, Row
from .selection import Entry, base_rows, blocks, clock_name, is_eager, shapes_text
from .tables import Section, Table

HEAD: Final = (
    *("run", "block", "provider"), *(f"{mode}: {column}" for mode in BOTH for column in ("time", "copies")),
    *("saved MiB", "peak MiB"),
)   # fmt: skip
FORMS: Final[Mapping[str, Callable[[Provider], bool]]] = {   # in separate groups, because their clocks may differ
    "torch": lambda provider: provider.backend == "torch" and not is_eager(provider),
    "Keras": lambda provider: provider.backend != "torch",
}


def costs(entries: Sequence[Entry]) -> Section:
    """Return the section on time and memory of the eager providers of every block at its base case."""
    lines = _lines([entry for entry in entries if is_eager(entry.row.provider)])
    text = f"In time and in memory, at the size that was timed first: {base_settings(entry.row for entry in entries)}."
    return Section("What a block costs", [text, Table(HEAD, [(None, lines)])] if lines else [], "alone")


def forms(entries: Sequence[Entry]) -> Section:
    """Return the section on compiled, fused and Keras providers at the base cases, also compared with peers."""
    by_form = {form: [entry for entry in entries if test(entry.row.provider)] for form, test in FORMS.items()}
    groups = [(_form_title(form, group), lines) for form, group in by_form.items() if (lines := _lines(group))]
    text = "The same blocks compiled or fused, and Keras on its backends, at the same sizes, beside their references."
    tables = [table for table in (Table(HEAD, groups), comparison_table(entries, eager=False)) if table.groups]
    return Section("Compiled, fused, and in Keras", [text, *tables] if tables else [], "forms")


def base_settings(rows: Iterable[Row]) -> str:
    """Return the shapes, dtypes and layouts of the base cases, each with its blocks in brackets."""
    rows = list(rows)
    settings: dict[str, list[str]] = {}
    for block in blocks(rows):
        for row in base_rows(rows, block)[:1]:
            text = f"{shapes_text(row.case)}, {row.case.dtype}, {row.case.layout}"
            settings.setdefault(text, []).append(block)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in settings.items())


def _lines(entries: Sequence[Entry]) -> list[list[str]]:
    """Return a table line for each block, run and provider at the block's base case: their names, time and memory."""
    return [
        [label, block, str(provider), *_cells({row.case.mode: row for row in rows if row.provider == provider})]
        for block in blocks(entry.row for entry in entries)
        for label in dict.fromkeys(entry.label for entry in entries)
        if (rows := base_rows([entry.row for entry in entries if entry.label == label], block))
        for provider in dict.fromkeys(row.provider for row in rows)
        if provider != COPY
    ]


def _form_title(form: str, entries: Sequence[Entry]) -> str:
    """Return the title of the group of a form's rows: the form and its clock."""
    clock = next(entry.row.clock for entry in entries if entry.row.seconds and not entry.row.case.network)
    return f"{form}, {clock_name(clock)}"


def _cells(by_mode: Mapping[str, Row]) -> list[str]:
    """Return the cells of one provider's rows by mode: time and copies in each mode, and memory of a training step."""
    cells = []
    for row in (by_mode.get(mode) for mode in BOTH):
        cells += [with_status(row, seconds(row.seconds)), quartiles(row.copies)] if row else ["", ""]
    training = by_mode.get("training")
    if not training:
        return [*cells, "", ""]
    return [*cells, *(memory(size, training.case.size) for size in (training.kept, training.peak))]


def with_status(row: Row, text: str) -> str:
    """Return the text, preceded by the row's status unless that is "timed"."""
    return text if row.status == "timed" else f"{row.status}: {text}"
