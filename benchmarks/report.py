"""Write runs as a report: Markdown for the repository, or one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attzoo.files import write

from .runs import Run, read
from .sections import sections
from .selection import environment
from .tables import Section, Table

TITLE: Final = "What attention blocks cost"
PAGE: Final = Path(__file__).with_name("page.html")
ESCAPES: Final = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {sign: f"\\{sign}" for sign in "\\|*`["})


def report(files: Sequence[Path], *, html: bool = False, across: bool = False) -> str:
    """Return the report on result files.

    Args:
        files: result files.
        html: return an HTML page with pictures instead of Markdown.
        across: allow files of different machines.

    Raises:
        ValueError: there is no file, or the files are of different machines, devices or torch versions.

    """
    runs = read_runs(files, across=across)
    return page(runs) if html else markdown(runs)


def read_runs(files: Sequence[Path], *, across: bool = False) -> list[Run]:
    """Return the runs of result files, the oldest first. Raises ValueError as `report` does."""
    if not files:
        raise ValueError("expected at least one result file, got none")
    runs = sorted((read(path) for path in files), key=lambda run: run.date)
    if not across:
        check_comparable(runs)
    return runs


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise ValueError if the runs are of different machines, devices or torch versions."""
    for run in runs[1:]:
        expected, got = environment(runs[0]), environment(run)
        for name in dict.fromkeys([*expected, *got]):
            if expected.get(name) != got.get(name):
                raise ValueError(
                    f"expected runs of one machine, device and torch version, got {name} {expected.get(name)} and "
                    f"{got.get(name)}; their times are not comparable; --across allows different machines"
                )


def markdown(runs: Sequence[Run]) -> str:
    """Return the report on runs as Markdown."""
    return "\n\n".join([f"# {TITLE}", *(part for section in sections(runs) for part in _section(section))]) + "\n"


def tables(runs: Sequence[Run]) -> dict[str, str]:
    """Return the tables of each section as Markdown, by the section's title."""
    by_title = {s.title: [table(part) for part in s.parts if isinstance(part, Table)] for s in sections(runs)}
    return {title: "\n\n".join(parts) for title, parts in by_title.items() if parts}


def _section(section: Section) -> list[str]:
    """Return a section's heading, text and tables as Markdown."""
    parts = (table(part) if isinstance(part, Table) else _escape(part) for part in section.parts)
    return [f"## {_escape(section.title)}", *parts]


def table(content: Table) -> str:
    """Return a table as Markdown. A group's title is a row, because Markdown tables have no groups."""
    lines = [list(map(_escape, content.head)), ["--:" if number else "---" for number in content.numbers]]
    for title, rows in content.groups:
        if title is not None:
            lines.append([f"**{_escape(title)}**", *[""] * (len(content.head) - 1)])
        lines += [list(map(_escape, row)) for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escape(text: str) -> str:
    """Return text on one line with Markdown's special characters escaped."""
    return " ".join(text.split()).translate(ESCAPES)


def page(runs: Sequence[Run]) -> str:
    """Return the report on runs as an HTML page with pictures, without scripts or external files."""
    from jinja2 import Environment, StrictUndefined

    from .plots import pictures

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE.read_text(encoding="utf-8"))
    return template.render(title=TITLE, sections=sections(runs), pictures=pictures(runs))


def picture(files: Sequence[Path], path: Path, *, across: bool = False) -> None:
    """Write a summary plot of the latest result file to a PNG file. Raises ValueError as `report` does."""
    from .plots import cost

    write(path, cost(read_runs(files, across=across)[-1]))
