"""The datasets to train on and to validate on, made from settings."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..data import IGNORE, Labels
from .data import Dataset, Folder
from .files import find
from .pairs import check_scales
from .phantoms import Phantoms
from .preparation import Preparation
from .settings import Settings
from .survey import check_classes, check_consistent, check_gaps, check_size


def datasets(settings: Settings) -> tuple[Dataset, Dataset]:
    """Return the datasets to train on and to validate on. Their `classes` is the number of classes in both.

    Raises:
        ValueError: if a file cannot be read, or the images and masks do not fit each other or the settings.
    """
    if settings.data is None:
        assert settings.phantoms is not None
        count = max(1, min(round(settings.validation * settings.phantoms), settings.phantoms - 1))   # to validate on
        create_phantoms = partial(Phantoms, size=settings.size or (64,) * settings.dims, seed=settings.seed)
        return create_phantoms(settings.phantoms - count), create_phantoms(count, start=settings.phantoms - count)
    assert settings.normalise is not None
    preparation = Preparation(settings.size, settings.normalise)
    training_pairs, validation_pairs = find(settings.data, settings.validation, settings.seed, settings.fold)
    options: dict[str, Any] = {"classes": settings.classes, "labels": settings.labels and Labels(settings.labels)}
    random_options: dict[str, Any] = {"flip": settings.flip, "augment": settings.augment, "seed": settings.seed}
    training = Folder(training_pairs, preparation, **random_options, **options)
    validation = Folder(validation_pairs, preparation, **options)
    for dataset in (training, validation):
        if (dims := dataset.spatial_dims) != settings.dims:
            got = f"{dataset.pairs[0][0]} with {dims}: set --dims {dims}"
            raise ValueError(f"expected images with {settings.dims} spatial axes, as --dims says, got {got}")
    check_scales(preparation, [training.first_image, validation.first_image])
    if validation.channels != training.channels:
        training_text, validation_text = (
            f"{part.first_image[0]} with {part.channels}" for part in (training, validation)
        )
        got = f"{training_text} and {validation_text}, the latter for validation: save all as grey or as RGB"
        raise ValueError(f"expected images of the same number of channels, got {got}")
    training.classes = validation.classes = _class_count(training, validation)
    return training, validation


def _class_count(training: Folder, validation: Folder) -> int:
    """Return the number of classes in both datasets.

    Raises ValueError if masks hold values that are not classes or have two meanings, or have fewer than two classes.
    """
    check_consistent([training.mask_counts, validation.mask_counts], training.labels)
    if training.classes is None:
        check_gaps(training.counts + validation.counts)
    check_classes(training.counts, validation.counts, len(training))
    check_size(training.mask_counts, training.labels, training.preparation.size)
    return training.classes or max(training.counts.keys() - {IGNORE}) + 1
