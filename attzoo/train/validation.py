"""What a validation counts: the loss, the confusion matrix, and the Dice of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import Dataset, Folder
from .state import Row


@dataclass
class Validation:
    """Counts of pixels and sums of losses over validation images.

    Attributes:
        confusion: the number of pixels int64 (K, K), by true class (rows) and predicted class (columns).
        overlaps: an array int64 (3, K) for each image: for each class the number of its pixels that are predicted
            correctly, of its pixels in the mask, and of the pixels that are predicted as this class.
        terms: float64 (T, 2): for each term of the loss, the sum over all images, and the number to divide it by.
    """

    confusion: NDArray[np.int64]
    overlaps: list[NDArray[np.int64]] = field(default_factory=list)
    terms: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))

    @classmethod
    def empty(cls, classes: int) -> Validation:
        """Return a validation of no images."""
        return cls(np.zeros((classes, classes), np.int64))

    def add(self, confusions: NDArray[Any], terms: Any) -> None:
        """Add a batch.

        confusions: one matrix for each image, (N, K, K). terms: as the attribute, (T, 2).
        """
        counts = np.asarray(confusions, np.int64)
        self.confusion += counts.sum(0)
        self.overlaps += [np.stack([np.diag(image), image.sum(1), image.sum(0)]) for image in counts]
        self._add_terms(np.asarray(terms, np.float64))

    def _add_terms(self, terms: NDArray[np.float64]) -> None:
        """Add terms (T, 2) of the loss; T may be 0."""
        self.terms = self.terms + terms if len(self.terms) and len(terms) else np.concatenate([self.terms, terms])

    @property
    def loss(self) -> float:
        """The loss over all images as one batch, so that it does not depend on the size of batches. 0 for no images."""
        return float(sum(total / count for total, count in self.terms if count))

    def cases(self, names: Sequence[str], epoch: int) -> list[Row]:
        """Return a row for each image: its name, the epoch, its mean Dice, and the Dice of each class.

        The mean leaves out class 0, which is usually the background. The Dice of a class without pixels in the mask and
        in the prediction is None, and so is the mean of no classes.
        """
        rows = []
        for name, overlap in zip(names, self.overlaps, strict=True):
            dice = dice_of(*overlap)
            values = [value for value in dice[1:] if value is not None]
            row: Row = {"image": name, "epoch": epoch, "dice": sum(values) / len(values) if values else None}
            rows.append(row | {f"dice_{k}": value for k, value in enumerate(dice)})
        return rows


def dice_of(correct: NDArray[Any], actual: NDArray[Any], predicted: NDArray[Any]) -> list[float | None]:
    """Return the Dice of each class, None for a class that has no pixel and is not predicted.

    Args:
        correct: the number of correctly predicted pixels of each class, (K,).
        actual: the number of pixels of each class in the masks, (K,).
        predicted: the number of pixels predicted as each class, (K,).
    """
    return [
        float(2 * correct_count / (actual_count + predicted_count)) if actual_count + predicted_count else None
        for correct_count, actual_count, predicted_count in zip(correct, actual, predicted, strict=True)
    ]


def merge(parts: Sequence[Validation]) -> Validation:
    """Return one validation from those of several processes, of which process r of n has the images r, r + n, ..."""
    result = Validation.empty(len(parts[0].confusion))
    for part in parts:
        result.confusion += part.confusion
        result._add_terms(part.terms)
    longest = max(len(part.overlaps) for part in parts)
    result.overlaps = [part.overlaps[i] for i in range(longest) for part in parts if i < len(part.overlaps)]
    return result


def image_names(dataset: Dataset) -> list[str]:
    """Return a name for each image: that of its file, or for phantoms its number."""
    if isinstance(dataset, Folder):
        return [image.name for image, _ in dataset.pairs]
    return [f"phantom {index}" for index in range(len(dataset))]


def worst(cases: Sequence[Row], count: int = 5) -> str:
    """Return a line that names the images with the lowest Dice, lowest first; "" if no image has one.

    cases: rows that `Validation.cases` returned. count: how many images to name.
    """
    scored = sorted((row for row in cases if row["dice"] is not None), key=lambda row: float(row["dice"]))
    if not scored:
        return ""
    names = ", ".join(f"{row['image']} {row['dice']:.3f}" for row in scored[:count])
    return f"lowest mean Dice of the validation images, without class 0, in epoch {scored[0]['epoch']}: {names}"
