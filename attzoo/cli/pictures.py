"""The commands `predict` and `maps`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer  # noqa: TID253
from rich.console import Console  # noqa: TID253
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: TID253

from .. import plotting
from ..train.files import ignored_files
from ..train.overview import shorten
from .shared import NORMALISE, Backend, backend_option, one_line, parse_integers, print_path

if TYPE_CHECKING:
    from ..predict import Network

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file with a trained network.")]
On = Annotated[Backend, backend_option("Framework to run the network in.")]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="[D,]H,W", help="Size to resize images to; `own` keeps their size and spacing. Default: as in training."
    ),
]
Normalise = Annotated[
    str | None,
    typer.Option(metavar="HOW", help=f"{NORMALISE} Default: as in training."),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Also replace files in --out that attzoo did not write. Inputs are never replaced."
    ),
]


def predict(
    model: Model,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="An image, a volume, or a folder of either.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder.")] = Path("attzoo-predict"),
    backend: On = Backend.torch,
    size: Size = None,
    normalise: Normalise = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="[D,]H,W",
            help="Size of windows for larger images; `whole` for no windows. Default: the --patch-size of the "
            "training, if it had one, else whole images.",
        ),
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Fraction of a window that the next one overlaps.  [0.5]")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, metavar="N", help="Windows per batch.  [4]")] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Draw the masks over the images, which is slow.")
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Segment images or volumes with a trained network.

    Writes the class of every pixel, in the size of the image, to DIR/masks: grey PNG for images, and for volumes the
    format of the volume. Writes pictures of the classes over the image to DIR/overlays. Size and normalisation are read
    from settings.json in the folder of MODEL; without it, images are not resized, and are z-scored. Files that cannot
    be read or have another number of channels than the network are skipped and listed at the end, with exit code 1.
    Results of an earlier call for the same images are replaced.
    """
    from ..predict import Unfinished, predict_files

    network = _opened(model, backend, size, normalise)
    if network.patch_size and window is None:
        typer.echo(f"windows are {plotting.size_text(network.patch_size)}, by {network.settings}", err=True)
    if source.is_dir() and (ignored := ignored_files(source)):
        typer.echo(f"ignored, not images: {shorten(ignored)}", err=True)
    failures: list[Exception] = []
    with _progress_bar() as on_progress:
        try:
            written = predict_files(
                network,
                source,
                out,
                window=parse_integers("window", window, none="whole"),
                overlap=overlap,
                batch=batch,
                overlays=overlays,
                overwrite=overwrite,
                on_progress=on_progress,
            )
        except Unfinished as err:
            written, failures = err.written, [err, *err.failures.values()]
    _print_paths(written)
    for failure in failures:
        typer.echo(f"attzoo: {one_line(failure)}", err=True)
    if failures:
        raise typer.Exit(1)


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar during the `with` block, if standard error is a terminal.

    Yields a function that sets the number of finished inputs and the number of all inputs.
    """
    columns = TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda finished_count, count: bar.update(task, completed=finished_count, total=count)


def maps(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image or a volume.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder.")] = Path("attzoo-maps"),
    backend: On = Backend.torch,
    size: Size = None,
    normalise: Normalise = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw the attention coefficients of a network for an image.

    Writes a picture of the coefficients of each gate and block over the image, and the coefficients as .npy files.
    """
    from ..predict import maps_file

    _print_paths(maps_file(_opened(model, backend, size, normalise), image, out, overwrite=overwrite))


def _opened(model: Path, backend: Backend, size: str | None, normalise: str | None) -> Network:
    """Load the network in a file and return it.

    Print to stderr how images are resized and normalised, and which options or settings.json decide this.
    """
    from ..predict import open_network

    network = open_network(model, backend=backend, size=parse_integers("size", size, none="own"), normalise=normalise)
    preparation, options = network.preparation, {"--size": size, "--normalise": normalise}
    resizing = f"resized to {plotting.size_text(preparation.size)}" if preparation.size else "not resized"
    if preparation.spacing:
        resizing = f"resampled to a spacing of {' x '.join(f'{side:.4g}' for side in preparation.spacing)} mm"
    summary = f"images are {resizing}, normalisation is {preparation.normalise}"
    given_options = [name for name, value in options.items() if value is not None]
    if network.settings is not None or len(given_options) == len(options):
        reasons = [*given_options, *map(str, filter(None, [network.settings]))]
        typer.echo(f"{summary}, by {' and '.join(reasons)}", err=True)
    else:
        missing = " and ".join(name for name in options if name not in given_options)
        hint = f"set {missing} if the network was trained otherwise"
        typer.echo(f"no settings.json beside {model}: {summary}; {hint}", err=True)
    return network


def _print_paths(written: list[Path]) -> None:
    """Print the paths of written files to stdout, one per line."""
    for path in written:
        print_path(path)
