"""The overview that a run prints before its first epoch: data, network and output folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..data import IGNORE
from ..plotting import size_text
from .data import Dataset, Folder
from .files import ignored_files
from .settings import Settings
from .survey import lost_classes
from .weighting import class_weights

MAX_LISTED: Final = 4   # the number of orientations, or of spacings, to list


def lines(settings: Settings, out: Path, training: Dataset, validation: Dataset, trainer: Any) -> list[str]:
    """Return the lines of the overview of a run: data, network and output folder.

    Args:
        settings: the settings of the run.
        out: the output folder.
        training: the dataset to train on.
        validation: the dataset to validate on.
        trainer: the trainer, with the network.
    """
    parts = [_images(training, validation), *_geometries(training, validation), *_classes(training, validation)]
    parameters = sum(weight.size for weight in trainer.network.spec.weights.values() if weight.trainable)
    network_text = f"{settings.variant or 'unet'} in {trainer.framework}, {parameters:,} parameters"
    if settings.size and settings.data:
        parts.append(f"resized to {size_text(settings.size)}{_lost_classes(training, validation)}")
    if settings.patch_size:
        parts.append(_patches(settings, training))
    if settings.spacing:
        parts.append(f"resampled to a spacing of {' x '.join(f'{side:.4g}' for side in settings.spacing)} mm")
    if weights := class_weights(settings, training):
        parts.append(f"class weights: {', '.join(f'{weight:.4g}' for weight in weights)}")
    if settings.init:
        parts.append(f"initial weights: {settings.init}")
    return [*parts, f"network: {network_text}", f"output: {out.resolve()}"]


def _images(training: Dataset, validation: Dataset) -> str:
    """Return a line with the number of images, their sizes, channels and dtypes."""
    counts_text = f"{len(training)} images to train on, {len(validation)} to validate on"
    channels_text = f"{training.channels} channel{'s' * (training.channels > 1)}"
    if not isinstance(training, Folder) or not isinstance(validation, Folder):
        return f"data: built-in phantoms, {counts_text}; {size_text(training.common_size())}, {channels_text}"
    shapes = sorted({shape[1:] for shape in (*training.shapes, *validation.shapes)})
    size = size_text(shapes[0]) + (f" to {size_text(shapes[-1])}, {len(shapes)} sizes" if len(shapes) > 1 else "")
    return f"data: {counts_text}; {size}, {channels_text}, {' and '.join(sorted(training.dtypes | validation.dtypes))}"


def _geometries(training: Dataset, validation: Dataset) -> list[str]:
    """Return a line with the orientations of volumes and one with their spacings, each with the number of volumes.

    A volume without a geometry is left out. Without any, the list is empty.
    """
    if not isinstance(training, Folder) or not isinstance(validation, Folder):
        return []
    geometries = training.geometries + validation.geometries
    result = []
    for name, values in (("axes", [g.axes for g in geometries]), ("spacing", [g.sides for g in geometries])):
        counts = Counter(values).most_common()
        if counts:
            more_text = f" and {len(counts) - MAX_LISTED} more" if len(counts) > MAX_LISTED else ""
            values_text = ", ".join(f"{value} in {count}" for value, count in counts[:MAX_LISTED])
            fix = "set --spacing to resample all volumes alike" if name == "spacing" else "reorient all volumes alike"
            is_ignored = len(counts) > 1 and not (name == "spacing" and training.preparation.spacing)
            hint = f"; a network ignores them: {fix} if they matter" if is_ignored else ""
            result.append(f"{name}: {values_text}{more_text}{hint}")
    return result


def _classes(training: Dataset, validation: Dataset) -> list[str]:
    """Return a line with the share of pixels of each class, and a line with ignored files, if any."""
    if not isinstance(training, Folder) or not isinstance(validation, Folder):
        return [f"classes: {training.classes}"]
    counts = training.counts + validation.counts
    total = sum(counts.values())
    labels = training.labels.values if training.labels else None
    class_texts = []
    for k in range(training.classes or 0):
        value_text = f" (value {labels[k]})" if labels else ""
        class_texts.append(f"{k}{value_text} in {_share(counts[k], total)}")
    ignored_text = f"; {IGNORE}, ignored, in {_share(counts[IGNORE], total)}" if counts[IGNORE] else ""
    line = f"classes: {training.classes}, of all pixels {', '.join(class_texts)}{ignored_text}"
    folders = sorted({path.parent for dataset in (training, validation) for pair in dataset.pairs for path in pair})
    files = [path for folder in folders for path in ignored_files(folder)]
    return [line, *([f"ignored, not images: {shorten(files)}"] if files else [])]


def _lost_classes(training: Dataset, validation: Dataset) -> str:
    """Return a text about the classes that resizing removes from some masks, "" if there are none."""
    if not isinstance(training, Folder) or not isinstance(validation, Folder):
        return ""
    lost = lost_classes([training.mask_counts, validation.mask_counts], training.labels)
    texts = [f"class {k} vanishes from {count} of {masks} masks that hold it" for k, (count, masks) in lost.items()]
    return f"; {', '.join(texts)}: a larger --size keeps small objects" if texts else ""


def _patches(settings: Settings, training: Dataset) -> str:
    """Return a line with the number and size of patches, and the number of images that are padded to this size."""
    assert isinstance(training, Folder)
    assert settings.patch_size is not None
    assert settings.foreground is not None
    patch_size = settings.patch_size
    smaller_count = sum(any(s < p for s, p in zip(size, patch_size, strict=True)) for size in training.sizes)
    padded_text = f"; {smaller_count} images are smaller and padded" if smaller_count else ""
    share_text = f"{settings.foreground:.0%} centered on a class other than 0"
    return f"patches: {settings.patches} of {size_text(settings.patch_size)} from each image, {share_text}{padded_text}"


def _share(count: int, total: int) -> str:
    """Return count / total as a percentage; only a count of 0 is "0 %".

    >>> _share(0, 100), _share(1, 100000), _share(1, 8)
    ('0 %', '< 0.01 %', '12.50 %')
    """
    percentage = 100 * count / total
    return "0 %" if not count else "< 0.01 %" if percentage < 0.01 else f"{percentage:.2f} %"


def shorten(files: Sequence[Path | str]) -> str:
    """Return a text of the first five paths and the number of further paths."""
    return ", ".join(map(str, files[:5])) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
