"""Weights of the classes in the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ..data import IGNORE
from .data import Dataset, Folder
from .settings import AUTO, Settings


def inverse_frequencies(counts: Mapping[int, int], classes: int) -> tuple[float, ...]:
    """Return the weight of each class, inversely proportional to its number of pixels; the mean over pixels is 1.

    The weight of class k is N / (P n_k), where n_k is the number of its pixels, N that of all classes, and P the number
    of classes that have pixels. A class without pixels has the weight 1. This is "balanced" of
    sklearn.utils.class_weight.compute_class_weight.

    Args:
        counts: the number of pixels of each class; IGNORE is left out.
        classes: the number of classes.
    """
    numbers = [counts.get(k, 0) for k in range(classes)]
    present = sum(number > 0 for number in numbers)
    return tuple(sum(numbers) / (present * number) if number else 1.0 for number in numbers)


def class_weights(settings: Settings, training: Dataset) -> tuple[float, ...] | None:
    """Return the weight of each class in the loss, or None without `settings.class_weights`.

    training: the dataset to train on. "auto" counts the pixels of its masks, before they are resized.

    Raises:
        ValueError: the number of weights is not the number of classes.
    """
    weights, classes = settings.class_weights, training.classes or 0
    if weights is None:
        return None
    if weights == AUTO:
        counts = training.counts if isinstance(training, Folder) else _count(training)
        return inverse_frequencies(counts, classes)
    if len(weights) != classes:
        expected = f"expected {classes} class weights, one for each class"
        raise ValueError(f"{expected}, got {len(weights)}: set --class-weights to {classes} numbers, or to {AUTO}")
    return tuple(map(float, weights))


def _count(dataset: Dataset) -> Counter[int]:
    """Return the number of pixels of each class in the masks of a dataset whose masks are the same in every epoch."""
    counts: Counter[int] = Counter()
    for index in range(len(dataset)):
        values, numbers = np.unique(dataset[0, index][1], return_counts=True)
        counts.update({int(value): int(number) for value, number in zip(values, numbers, strict=True)})
    del counts[IGNORE]
    return counts
