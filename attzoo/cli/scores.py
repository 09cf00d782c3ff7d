"""The command `score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer  # noqa: TID253

from ..data import Labels, parse_labels
from ..tables import text_table
from .shared import print_path


def score(
    predicted: Annotated[Path, typer.Argument(metavar="PREDICTED", help="A predicted mask, or a folder of them.")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="The true mask, or a folder of them.")],
    labels: Annotated[
        str | None,
        typer.Option(metavar="V,V,..", help="Value of each class in the true masks, such as 0,255; as in `train`."),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(metavar="K", help="Number of classes. Default: as many as in the true masks.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(metavar="D", help="Distance that surface_dice accepts, in mm or pixels.  [1]")
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV to write the scores of each image and class to.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file --out if it exists.")] = False,
) -> None:
    """Compare predicted masks with true masks of the same names.

    Prints, for each class except 0, the mean over images of: dice and iou; hausdorff95, the 95th percentile of the
    distances between the surfaces; and surface_dice, the share of the surfaces within --tolerance of each other.
    Distances are in mm for NIfTI files, and in pixels for others. A class that neither mask of an image has is left
    out. If only one mask has it, hausdorff95 is left out, and the other scores are 0. PREDICTED may be the output
    folder of `attzoo predict`.
    """
    from ..files import write
    from ..predict.scores import METRICS, means
    from ..predict.scores import score as score_masks
    from ..train.report import as_csv

    if out is not None and out.exists() and not overwrite:
        raise ValueError(f"expected a new file, got {out}, which exists: set --overwrite, or choose another --out")
    values = None if labels is None else Labels(parse_labels(labels))
    rows = score_masks(predicted, truth, labels=values, classes=classes, tolerance=tolerance)
    head = ["class", "images", *METRICS, "unpaired"]
    lines = [
        [str(cell) if name == "class" else f"{cell:.4g}" if name in METRICS and cell is not None else cell
         for name, cell in ((name, row[name]) for name in head)]
        for row in means(rows)
    ]   # fmt: skip
    typer.echo(text_table([head, *lines], numbers=head))
    if out is not None:
        write(out, as_csv(rows))
        print_path(f"{out}: the scores of each image and class")
