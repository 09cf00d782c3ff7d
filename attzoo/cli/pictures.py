"""The commands on pictures: predict, maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer  # noqa: TID253
from rich.console import Console  # noqa: TID253
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: TID253

from .. import look
from ..train.data import NORMALISATIONS
from ..train.files import passed_over
from ..train.overview import listed
from .shared import Backend, backend_option, line, numbers, say

if TYPE_CHECKING:
    from ..predict import Network

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file of a network.")]
On = Annotated[Backend, backend_option("The framework to run it in.")]
Size = Annotated[
    str | None,
    typer.Option(metavar="H,W", help="Resize images to this, or keep their `own`; as settings.json has it."),
]
Normalise = Annotated[
    str | None, typer.Option(metavar="HOW", help=f"{', '.join(NORMALISATIONS)}; as settings.json has it.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that attzoo did not write, too; never an input.")
]


def predict(
    model: Model,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="An image, a volume, or a folder of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to put masks and overlays.")] = Path("attzoo-predict"),
    backend: On = Backend.torch,
    size: Size = None,
    normalise: Normalise = None,
    window: Annotated[
        str | None, typer.Option(metavar="H,W", help="Take larger images by parts of this size; whole unless given.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Of a part that its neighbour has too.  [0.5]")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, metavar="N", help="Parts at once.  [4]")] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Draw masks over the images; takes most of the time.")
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Segment images or volumes with a trained network.

    Writes DIR/masks, the class of every pixel, grey PNG for pictures and .npy or .nii.gz for volumes, and DIR/overlays,
    pictures of them. Sizes stay. What settings.json beside MODEL says of training is used: size and normalisation;
    without it images stay as large as they are and are z-scored. Files that can't be read, or have other channels than
    the network takes, are passed over and named at the end, with exit code 1. What an earlier call made of the
    same images is replaced.
    """
    from ..predict import Unfinished, predict_files

    network = _opened(model, backend, size, normalise)
    if source.is_dir() and (strays := passed_over(source)):
        typer.echo(f"passed over, no images: {listed(strays)}", err=True)
    columns = TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        failures: list[Exception] = []
        try:
            written = predict_files(
                network,
                source,
                out,
                window=numbers("window", window),
                overlap=overlap,
                batch=batch,
                overlays=overlays,
                overwrite=overwrite,
                hear=lambda done, count: bar.update(task, completed=done, total=count),
            )
        except Unfinished as err:
            written, failures = err.written, [err, *err.failures.values()]
    _tell(written)
    for failure in failures:
        typer.echo(f"attzoo: {line(failure)}", err=True)
    if failures:
        raise typer.Exit(1)


def maps(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image or a volume.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to put picture and arrays.")] = Path("attzoo-maps"),
    backend: On = Backend.torch,
    size: Size = None,
    normalise: Normalise = None,
    overwrite: Overwrite = False,
) -> None:
    """Show where a trained network looks.

    Writes a picture of the coefficients of every gate and block over the image, and a .npy of each.
    """
    from ..predict import maps_file

    _tell(maps_file(_opened(model, backend, size, normalise), image, out, overwrite=overwrite))


def _opened(model: Path, backend: Backend, size: str | None, normalise: str | None) -> Network:
    """The network in a file; stderr is told how images are prepared for it, and by what."""
    from ..predict import open_network

    network = open_network(model, backend=backend, size=numbers("size", size, none="own"), normalise=normalise)
    preparation, options = network.preparation, {"--size": size, "--normalise": normalise}
    to = f"resized to {look.sizes(preparation.size)}" if preparation.size else "taken at their own size"
    how = f"images are {to}, {preparation.normalise}"
    by = [name for name, value in options.items() if value is not None]
    if network.settings is not None or len(by) == len(options):
        typer.echo(f"{how}, by {' and '.join([*by, *map(str, filter(None, [network.settings]))])}", err=True)
    else:
        left = " and ".join(name for name in options if name not in by)
        typer.echo(f"no settings.json beside {model}: {how}; set {left} if it was trained otherwise", err=True)
    return network


def _tell(written: list[Path]) -> None:
    for path in written:
        say(path)
