"""Runs as a report to read: Markdown for the repository, or one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attzoo.files import write

from .picking import place
from .runs import Run, read
from .sections import sections
from .tables import Section, Table

TITLE: Final = "What attention blocks cost"
PAGE: Final = Path(__file__).with_name("page.html")
SPECIAL: Final = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {sign: f"\\{sign}" for sign in "\\|*`["})


def report(files: Sequence[Path], *, html: bool = False, across: bool = False) -> str:
    """The report on result files. Raises ValueError for files of several machines, devices or torches, unless `across`.

    html: one page with pictures instead of Markdown.
    """
    runs = joined(files, across=across)
    return page(runs) if html else markdown(runs)


def joined(files: Sequence[Path], *, across: bool = False) -> list[Run]:
    """The runs of result files, the oldest first. Raises ValueError where `together` does, and for no file."""
    if not files:
        raise ValueError("expected at least one result file, got none")
    runs = sorted((read(path) for path in files), key=lambda run: run.date)
    if not across:
        together(runs)
    return runs


def together(runs: Sequence[Run]) -> None:
    """Raise ValueError for runs that are not of one machine, device and torch."""
    for run in runs[1:]:
        ours, theirs = place(runs[0]), place(run)
        for name in dict.fromkeys([*ours, *theirs]):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"expected runs of one machine, device and torch, got {ours.get(name)} and {theirs.get(name)} for "
                    f"{name}: their times do not compare; --across puts them side by side all the same"
                )


def markdown(runs: Sequence[Run]) -> str:
    """Runs as Markdown."""
    return "\n\n".join([f"# {TITLE}", *(part for section in sections(runs) for part in _section(section))]) + "\n"


def tables(runs: Sequence[Run]) -> dict[str, str]:
    """Title of a section -> its tables as Markdown, for pages that show a part."""
    found = {s.title: [table(part) for part in s.parts if isinstance(part, Table)] for s in sections(runs)}
    return {title: "\n\n".join(parts) for title, parts in found.items() if parts}


def _section(section: Section) -> list[str]:
    return [f"## {_plain(section.title)}", *(table(p) if isinstance(p, Table) else _plain(p) for p in section.parts)]


def table(what: Table) -> str:
    """A table; a group's title is a row of its own, for Markdown knows no other way."""
    lines = [list(map(_plain, what.head)), ["--:" if number else "---" for number in what.numbers]]
    for title, rows in what.groups:
        if title is not None:
            lines.append([f"**{_plain(title)}**", *[""] * (len(what.head) - 1)])
        lines += [list(map(_plain, row)) for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return " ".join(text.split()).translate(SPECIAL)


def page(runs: Sequence[Run]) -> str:
    """Runs as one HTML page: no script, nothing to load, readable in print, in the dark and on a phone."""
    from jinja2 import Environment, StrictUndefined

    from .plots import pictures

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE.read_text(encoding="utf-8"))
    return template.render(title=TITLE, sections=sections(runs), pictures=pictures(runs))


def picture(files: Sequence[Path], path: Path, *, across: bool = False) -> None:
    """Write the one picture for a README, PNG, from the latest of the files. Raises ValueError as `report` does."""
    from .plots import cost

    write(path, cost(joined(files, across=across)[-1]))
