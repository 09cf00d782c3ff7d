"""What the blocks cost: `python -m benchmarks run`, then `report`; `compare` sets two runs side by side."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .cases import BLOCKS

SUITES = "quick: up to 5 minutes; full: up to 10 on a GPU, 45 on a CPU"
app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Device(StrEnum):
    """Where."""

    cpu = "cpu"
    cuda = "cuda"


class SuiteName(StrEnum):
    """How much."""

    quick = "quick"
    full = "full"


@app.command()
def run(
    device: Annotated[Device | None, typer.Option(help="[default: cuda where there is one]")] = None,
    suite: Annotated[SuiteName, typer.Option(help=SUITES)] = SuiteName.quick,
    blocks: Annotated[str, typer.Option(help="names with commas between")] = ",".join(BLOCKS),
    out: Annotated[Path | None, typer.Option(help="the file  [default: a new one in benchmarks/results]")] = None,
) -> None:
    """Time the blocks beside their peers and the limit; what is wrong is reported and not timed."""
    import torch

    from . import run as running

    where = device or (Device.cuda if torch.cuda.is_available() else Device.cpu)
    made, path = running.run(suite, where, tuple(blocks.split(",")), out)
    print(running.summary(made))
    print(f"{path}\npython -m benchmarks report {path}")
    if any(row.provider.library == "attzoo" and row.status in ("wrong", "failed") for row in made.rows):
        raise typer.Exit(1)


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="result files of one machine")],
    html: Annotated[bool, typer.Option("--html", help="a page with pictures rather than Markdown")] = False,
    across: Annotated[bool, typer.Option("--across", help="of several machines, too")] = False,
) -> None:
    """Draw a table, or a page, from result files."""
    from .report import report

    print(report(files, html=html, across=across), end="")


def main() -> None:
    """The command line; what is asked wrongly is answered in one line."""
    try:
        app(prog_name="python -m benchmarks")
    except (ValueError, OSError) as err:
        sys.exit(f"benchmarks: {err}")


if __name__ == "__main__":
    main()
