"""The datasets to train on and to validate on, made from settings, and their loaders."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..data import IGNORE, Labels
from .batches import Batches, Loader
from .data import Dataset, Folder
from .files import find
from .pairs import check_scales
from .patches import Patches
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
    preparation = Preparation(settings.size, settings.normalise, settings.spacing, settings.channel_files)
    training_pairs, validation_pairs = find(
        settings.data, settings.validation, settings.seed, settings.fold, settings.channel_files
    )
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


def loaders(
    settings: Settings, training: Dataset, validation: Dataset, workers: int, rank: int, world_size: int
) -> tuple[Loader, Loader]:
    """Return the loaders of training and validation data for process `rank` of `world_size` processes.

    workers: the number of processes that load batches in advance.
    """
    options: dict[str, Any] = {"seed": settings.seed, "rank": rank, "world_size": world_size}
    validation_batch, group = settings.batch, settings.patches or 1
    if settings.patch_size and settings.patches and settings.foreground is not None:
        assert isinstance(training, Folder)
        training = Patches(training, settings.patch_size, settings.patches, settings.foreground)
        validation_batch = world_size   # whole images, which may have different sizes and be large
    # batch norm needs several values
    leaves_single_sample = len(training) > settings.batch and len(training) % settings.batch == 1
    drop_last = world_size > 1 or leaves_single_sample   # every process needs the same number of batches
    batches = Batches(len(training), settings.batch, drop_last=drop_last, group=group, **options)
    pin = settings.backend == "torch"
    loader = Loader(training, batches, workers, pin)
    validation_batches = Batches(len(validation), validation_batch, shuffle=False, **options)
    validation_workers = min(workers, 1) if settings.patch_size else workers   # each loads two batches in advance
    return loader, Loader(validation, validation_batches, validation_workers, pin)


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
