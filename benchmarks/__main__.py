"""What the blocks cost: `python -m benchmarks run`, then `report`; `compare` sets two runs side by side.

`wins` prints what a run says for kernels("auto").
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from attzoo.files import write

SUITES = (
    "quick: up to 5 minutes; full: up to 10 on a GPU, 45 on a CPU. On a GPU also kernels: the fused kernels, up to 10; "
    "wins: what the table of recorded wins needs, up to 5; networks: up to 5"
)
app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Device(StrEnum):
    """Where."""

    cpu = "cpu"
    cuda = "cuda"


class SuiteName(StrEnum):
    """How much."""

    quick = "quick"
    full = "full"
    kernels = "kernels"
    wins = "wins"
    networks = "networks"


@app.command()
def run(
    device: Annotated[Device | None, typer.Option(help="[default: cuda where there is one]")] = None,
    suite: Annotated[SuiteName, typer.Option(help=SUITES)] = SuiteName.quick,
    blocks: Annotated[str | None, typer.Option(help="names with commas between  [default: all]")] = None,
    out: Annotated[Path | None, typer.Option(help="the file  [default: a new one in benchmarks/results]")] = None,
) -> None:
    """Time the blocks beside their peers and the limit; what is wrong is reported and not timed."""
    import torch

    from . import run as running

    where = device or (Device.cuda if torch.cuda.is_available() else Device.cpu)
    made, path = running.run(suite, where, tuple(blocks.split(",")) if blocks else (), out)
    print(running.summary(made))
    print(f"{path}\npython -m benchmarks report {path}")
    if any(row.provider.library == "attzoo" and row.status in ("wrong", "failed") for row in made.rows):
        raise typer.Exit(1)


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="result files of one machine")],
    html: Annotated[bool, typer.Option("--html", help="a page with pictures, beside the last of the files")] = False,
    picture: Annotated[Path | None, typer.Option(help="write the headline as a PNG, too")] = None,
    across: Annotated[bool, typer.Option("--across", help="of several machines, too")] = False,
) -> None:
    """Print tables as Markdown, or write a page, from result files."""
    from .report import picture as draw
    from .report import report

    if picture:
        draw(files, picture, across=across)
    told = report(files, html=html, across=across)
    if html:
        page = files[-1].with_suffix(".html")
        write(page, told.encode())
        told = f"{page}\n"
    print(told, end="")


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="a result file")],
    new: Annotated[Path, typer.Argument(help="a later one, of the same machine")],
    across: Annotated[bool, typer.Option("--across", help="of another machine, too")] = False,
) -> None:
    """Say which rows moved beyond their spread; exits with 1 where attzoo got slower or anything wrong."""
    from .compare import compare

    told, worse = compare(old, new, across=across)
    print(told, end="")
    raise typer.Exit(int(worse))


@app.command()
def wins(files: Annotated[list[Path], typer.Argument(help="result files of runs on CUDA")]) -> None:
    """Print the table for attzoo/fast/wins.py: from which size on fused kernels beat attzoo's eager blocks.

    One row for each block, GPU, dtype, layout, and training or inference, where that is so beyond the control at every
    size that was timed from that one on, on both clocks. kernels("auto") takes the kernels there.
    """
    from .wins import table

    print(table(files), end="")


def main() -> None:
    """The command line; what is asked wrongly is answered in one line."""
    try:
        app(prog_name="python -m benchmarks")
    except (ValueError, OSError) as err:
        sys.exit(f"benchmarks: {err}")


if __name__ == "__main__":
    main()
