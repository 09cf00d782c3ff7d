"""Scores of predicted masks: overlap with the true masks and distances between surfaces, computed by MONAI."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import contract
from ..data import IGNORE, Labels, check_same_grid, ending, package, read_mask
from ..plotting import size_text
from ..train.files import paths_by_name
from ..train.overview import shorten
from ..train.state import Row
from ..train.survey import check_consistent, check_gaps, class_counts, count_values

METRICS: Final = ("dice", "iou", "hausdorff95", "surface_dice")
Mask = NDArray[Any]


def score(
    predicted: str | Path,
    truth: str | Path,
    *,
    labels: Labels | None = None,
    classes: int | None = None,
    tolerance: float = 1.0,
) -> list[Row]:
    """Compare predicted masks with true masks.

    Surfaces are the pixels of a class with a neighbour, along an axis, of another class or outside of the image.
    Distances are in millimetres for NIfTI files, and in pixels for others. Pixels that are 255 in the true mask are
    left out: they belong to no class in both masks.

    Args:
        predicted: a mask of class indices, or a folder of them, as `attzoo predict` writes.
        truth: the true mask, or a folder with a mask of the same name, apart from the ending, for each predicted one.
        labels: the values of the classes in the true masks; None if they are class indices.
        classes: the number of classes; None for that of `labels`, or as many as in the true masks.
        tolerance: the largest distance at which `surface_dice` accepts a surface.

    Returns:
        A row for each image and each class except 0, with:

        - image: the name of the image.
        - class: the index of the class.
        - dice: 2 |P T| / (|P| + |T|), where P and T are the pixels of the class in both masks.
        - iou: |P T| / |P or T|.
        - hausdorff95: the 95th percentile of the distances from each surface to the other, the larger of both
          directions. None if only one mask has the class.
        - surface_dice: the share of both surfaces that is at most `tolerance` from the other surface.

        The scores of a class that neither mask has are None.

    Raises:
        ValueError: a mask has no partner, has another size or grid than its partner, or has values that are not
            classes; or `tolerance` is not positive.
    """
    tolerance = contract.positive("tolerance", tolerance)
    pairs = _pairs(Path(predicted), Path(truth))
    count = _class_count([true for _, true in pairs.values()], labels, classes)
    rows: list[Row] = []
    for name, (predicted_path, true_path) in pairs.items():
        predicted_mask, true_mask = _read_pair(predicted_path, true_path, labels, count)
        grid = check_same_grid(true_path, predicted_path)
        spacing = grid.spacing if grid else (1.0,) * true_mask.ndim
        for k in range(1, count):
            scores = _scores(predicted_mask == k, true_mask == k, spacing, tolerance)
            rows.append({"image": name, "class": k, **scores})
    return rows


def means(rows: Sequence[Row]) -> list[Row]:
    """Return the mean scores of each class over the images, and of all classes.

    Args:
        rows: what `score` returned.

    Returns:
        A row for each class, and one with the class "all", with:

        - class: the index of the class.
        - images: the number of images in which the class is in a mask; for "all" their sum over classes.
        - the mean of each score over these images, without those that are None; None for no images.
        - unpaired: the number of images in which only one mask has the class, which `hausdorff95` leaves out.
    """
    result: list[Row] = []
    for k in [*sorted({row["class"] for row in rows}), "all"]:
        scored = [row for row in rows if k in (row["class"], "all") and row["dice"] is not None]
        mean_row: Row = {"class": k, "images": len(scored)}
        for metric in METRICS:
            values = [row[metric] for row in scored if row[metric] is not None]
            mean_row[metric] = float(np.mean(values)) if values else None
        result.append(mean_row | {"unpaired": sum(row["hausdorff95"] is None for row in scored)})
    return result


def _pairs(predicted: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Return the predicted and the true mask of each image, by its name. Raises ValueError if a mask has no partner."""
    if predicted.is_file() and truth.is_file():
        return {predicted.name[: len(predicted.name) - len(ending(predicted))]: (predicted, truth)}
    for path, other in ((predicted, truth), (truth, predicted)):
        if not path.is_dir():
            kind = "a file" if path.exists() else "no file or folder"
            raise ValueError(f"expected two masks or two folders of masks, got {kind} {path} for {other}")
    if (predicted / "masks").is_dir():   # the output folder of `attzoo predict`
        predicted = predicted / "masks"
    predicted_paths, true_paths = paths_by_name(predicted), paths_by_name(truth)
    for paths, others, folder in ((true_paths, predicted_paths, predicted), (predicted_paths, true_paths, truth)):
        if missing := [path for name, path in paths.items() if name not in others]:
            got = f"none for {shorten(missing)}: add it, or move the other masks elsewhere"
            raise ValueError(f"expected a mask of the same name in {folder} for every mask, got {got}")
    return {name: (predicted_paths[name], path) for name, path in true_paths.items()}


def _class_count(paths: Sequence[Path], labels: Labels | None, classes: int | None) -> int:
    """Return the number of classes of true masks. Raises ValueError if their values are not classes, or are one class.

    Arguments as `score`.
    """
    if classes is not None:
        contract.integer("classes", classes, 2)
    if labels:
        if classes not in (None, len(labels.values)):
            raise ValueError(f"classes must be {len(labels.values)}, the number of labels, or left out, got {classes}")
        classes = len(labels.values)
    counts = count_values(paths, labels)
    check_consistent([counts], labels)
    totals = class_counts(counts.counts, labels)
    if classes is None:
        check_gaps(totals)
    largest = max(totals.keys() - {IGNORE}, default=0)
    if largest == 0:
        got = f"only {' and '.join(map(str, sorted(totals)))}"
        fix = "if another value is a class, list the value of each class by --labels, such as --labels 0,255"
        raise ValueError(f"expected true masks with a class besides 0, got {got}: {fix}")
    return classes or largest + 1


def _read_pair(predicted: Path, true: Path, labels: Labels | None, classes: int) -> tuple[Mask, Mask]:
    """Return the class of each pixel in both masks, (*S), and 255 in both where the true mask has it.

    Raises ValueError if the sizes differ, or a value is not a class.
    """
    predicted_mask, true_mask = read_mask(predicted), read_mask(true, labels)
    if predicted_mask.shape != true_mask.shape:
        got = f"{size_text(predicted_mask.shape)} and {size_text(true_mask.shape)}"
        raise ValueError(f"expected {predicted} and {true} to have one size, got {got}: predict the image of the mask")
    predicted_mask = np.where(true_mask == IGNORE, IGNORE, predicted_mask)
    for path, mask in ((predicted, predicted_mask), (true, true_mask)):
        if (is_wrong := (mask >= classes) & (mask != IGNORE)).any():
            fix = "set --classes if there are more, or predict with the network of these classes"
            raise ValueError(f"expected classes from 0 to {classes - 1} in {path}, got {mask[is_wrong][0]}: {fix}")
    return predicted_mask, true_mask


def _scores(predicted: Mask, true: Mask, spacing: Sequence[float], tolerance: float) -> dict[str, float | None]:
    """Return the scores of one class by metric.

    Args:
        predicted: whether the class is predicted for each pixel, (*S).
        true: whether it is the true class, (*S).
        spacing: the distance between pixels along each axis.
        tolerance: as in `score`.
    """
    if not (predicted.any() and true.any()):   # MONAI returns NaN or infinity for some of these cases
        none = 0.0 if predicted.any() or true.any() else None
        return {"dice": none, "iou": none, "hausdorff95": None, "surface_dice": none}
    contract.triton_first()   # MONAI may import TensorFlow
    torch, metrics = package("torch"), package("monai.metrics")
    masks = [torch.from_numpy(mask[None, None]).float() for mask in (predicted, true)]
    options: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)   # MONAI warns of its own call
        results = (
            metrics.compute_dice(*masks),
            metrics.compute_iou(*masks),
            metrics.compute_hausdorff_distance(*masks, percentile=95, **options),
            metrics.compute_surface_dice(*masks, [tolerance], **options),
        )
    return dict(zip(METRICS, (float(result) for result in results), strict=True))
