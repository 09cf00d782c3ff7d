"""Measure the time and memory of attention blocks with `run`, and print the results with `report`.

`compare` lists the differences between two runs. `wins` prints the table that kernels("auto") uses.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from attzoo.files import write

SUITES = (
    "quick: up to 5 minutes; full: up to 10 minutes on a GPU, 45 on a CPU. On a GPU only: kernels, the fused kernels, "
    "up to 10 minutes; wins, the cases for the table of recorded wins, up to 5; networks, ResNet-50 and U-Net, up to 5"
)
app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Device(StrEnum):
    """The devices to measure on."""

    cpu = "cpu"
    cuda = "cuda"


class SuiteName(StrEnum):
    """The suites of cases. `SUITES` describes them."""

    quick = "quick"
    full = "full"
    kernels = "kernels"
    wins = "wins"
    networks = "networks"


@app.command()
def run(
    device: Annotated[Device | None, typer.Option(help="[default: cuda if available, else cpu]")] = None,
    suite: Annotated[SuiteName, typer.Option(help=SUITES)] = SuiteName.quick,
    blocks: Annotated[str | None, typer.Option(help="comma-separated block names  [default: all]")] = None,
    out: Annotated[Path | None, typer.Option(help="new result file  [default: one in benchmarks/results]")] = None,
) -> None:
    """Time the blocks, equivalent blocks of other libraries and a copy of the input, and write a result file.

    Providers with wrong results are reported and not timed. Exits with 1 if attzoo is wrong or fails in any case.
    """
    import torch

    from . import run as running

    device_name = device or (Device.cuda if torch.cuda.is_available() else Device.cpu)
    result, path = running.run(suite, device_name, tuple(blocks.split(",")) if blocks else (), out)
    print(running.summary(result))
    print(f"{path}\npython -m benchmarks report {path}")
    if any(row.provider.library == "attzoo" and row.status in ("wrong", "failed") for row in result.rows):
        raise typer.Exit(1)


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="result files, all of one machine unless --across")],
    html: Annotated[bool, typer.Option("--html", help="write an HTML page with plots next to the last file")] = False,
    picture: Annotated[Path | None, typer.Option(help="also write a summary plot to this PNG file")] = None,
    across: Annotated[
        bool, typer.Option("--across", help="allow files of different machines, devices or torch versions")
    ] = False,
) -> None:
    """Print result files as Markdown tables, or write them as an HTML page."""
    from .report import picture as write_picture
    from .report import report

    if picture:
        write_picture(files, picture, across=across)
    text = report(files, html=html, across=across)
    if html:
        page = files[-1].with_suffix(".html")
        write(page, text.encode())
        text = f"{page}\n"
    print(text, end="")


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="the earlier result file")],
    new: Annotated[Path, typer.Argument(help="the later result file, of the same machine unless --across")],
    across: Annotated[
        bool, typer.Option("--across", help="allow files of different machines, devices or torch versions")
    ] = False,
) -> None:
    """List rows that changed by more than the noise. Exits with 1 if attzoo got slower or any row became wrong."""
    from .compare import compare

    text, worse = compare(old, new, across=across)
    print(text, end="")
    raise typer.Exit(int(worse))


@app.command()
def wins(files: Annotated[list[Path], typer.Argument(help="result files of runs on CUDA")]) -> None:
    """Print the table for attzoo/fast/wins.py: the input sizes from which fused kernels are faster than eager blocks.

    The table has a row for each block, GPU, dtype, layout, and training or inference. The kernels are faster by more
    than the noise, on both clocks, at every timed size from the printed size on. kernels("auto") uses them there.
    """
    from .wins import table

    print(table(files), end="")


@app.command()
def finetune(
    out: Annotated[Path | None, typer.Option(help="result file  [default: benchmarks/finetune.json]")] = None,
) -> None:
    """Fine-tune the demo's network with attached blocks, for both values of `start`, and write the results.

    This takes about five minutes on one core. `python docs/generate.py` writes the table to docs/attaching.md.
    """
    from . import finetune as tuning

    results = tuning.run(lambda row: print(f"{row.block or 'no block'} {row.start}"))
    path = out or tuning.RESULTS
    write(path, (json.dumps(results, indent=1) + "\n").encode())
    print(f"{tuning.markdown(results)}\n{path}")


def main() -> None:
    """Run the command line; print a ValueError or OSError as one line and exit with 1."""
    try:
        app(prog_name="python -m benchmarks")
    except (ValueError, OSError) as err:
        sys.exit(f"benchmarks: {err}")


if __name__ == "__main__":
    main()
