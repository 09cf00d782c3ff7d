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
    "What to time. quick: one size of each block, up to 5 minutes. blocks: three sizes, up to 8 minutes. full: several "
    "sizes, dtypes and layouts, up to 10 minutes on a GPU, 45 on a CPU. On a GPU only: kernels, the fused kernels, up "
    "to 10 minutes; wins, the cases of the command `wins`, up to 5; networks, ResNet-50 and U-Net, up to 5."
)
app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,   # rich would take [default: ...] for markup and leave it out
)


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
    blocks = "blocks"


@app.command()
def run(
    device: Annotated[Device | None, typer.Option(help="Device.  [default: cuda if available, else cpu]")] = None,
    suite: Annotated[SuiteName, typer.Option(help=SUITES)] = SuiteName.quick,
    blocks: Annotated[str | None, typer.Option(help="Names of blocks, separated by commas.  [default: all]")] = None,
    out: Annotated[Path | None, typer.Option(help="New result file.  [default: one in benchmarks/results]")] = None,
) -> None:
    """Time the blocks, equivalent blocks of other libraries and a copy of the input, and write a result file.

    Blocks with wrong outputs or gradients are reported and not timed. Exits with 1 if a block of attzoo is wrong or
    raises an error.
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
    files: Annotated[list[Path], typer.Argument(help="Result files, of one machine unless --across is set.")],
    html: Annotated[bool, typer.Option("--html", help="Write an HTML page with plots next to the last file.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Also write a summary plot to this PNG file.")] = None,
    across: Annotated[
        bool, typer.Option("--across", help="Allow files of different machines, devices or torch versions.")
    ] = False,
) -> None:
    """Print result files of `run` as Markdown tables, or write them as an HTML page."""
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
    old: Annotated[Path, typer.Argument(help="The earlier result file.")],
    new: Annotated[Path, typer.Argument(help="The later result file, of the same machine unless --across is set.")],
    across: Annotated[
        bool, typer.Option("--across", help="Allow files of different machines, devices or torch versions.")
    ] = False,
) -> None:
    """List the times that differ between two result files by more than the noise.

    Exits with 1 if a block of attzoo has become slower, or if any block has become wrong or raises an error.
    """
    from .compare import compare

    text, worse = compare(old, new, across=across)
    print(text, end="")
    raise typer.Exit(int(worse))


@app.command()
def wins(files: Annotated[list[Path], typer.Argument(help="Result files of `run` on CUDA.")]) -> None:
    """Print the input sizes from which fused kernels are faster than eager blocks, as source for attzoo/fast/wins.py.

    The table has an entry for each block, GPU, dtype, layout, and training or inference. From the printed size on, the
    kernels are faster by more than the noise at every timed size, with the time of launching them from Python and
    without. kernels("auto") uses the kernels there.
    """
    from .wins import table

    print(table(files), end="")


@app.command()
def finetune(
    out: Annotated[Path | None, typer.Option(help="Result file.  [default: benchmarks/finetune.json]")] = None,
) -> None:
    """Compare both values of `start` of attzoo.attach by fine-tuning a small network, and write the accuracies.

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
