"""What a run prints before its first epoch: the data that it found, the network, and where it writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..data import IGNORE
from ..look import sizes
from .data import Dataset, Folder
from .files import ignored_files
from .settings import Settings
from .survey import lost_classes

SHOWN: Final = 4   # orientations, or spacings, that are told


def lines(settings: Settings, out: Path, training: Dataset, validation: Dataset, trainer: Any) -> list[str]:
    """The overview, a line for each thing."""
    parts = [_images(training, validation), *_geometries(training, validation), *_classes(training, validation)]
    parameters = sum(weight.size for weight in trainer.network.spec.weights.values() if weight.trainable)
    network = f"{settings.variant or 'unet'} in {trainer.framework}, {parameters:,} parameters"
    if settings.size and settings.data:
        parts.append(f"resized to {sizes(settings.size)}{_lost(training, validation)}")
    return [*parts, f"network: {network}", f"output: {out.resolve()}"]


def _images(training: Dataset, validation: Dataset) -> str:
    """How many there are, of which sizes, channels and dtypes."""
    counts = f"{len(training)} images to train on, {len(validation)} to validate on"
    channels = f"{training.channels} channel{'s' * (training.channels > 1)}"
    if not isinstance(training, Folder) or not isinstance(validation, Folder):
        return f"data: built-in phantoms, {counts}; {sizes(training.common_size())}, {channels}"
    shapes = sorted({shape[1:] for shape in (*training.shapes, *validation.shapes)})
    size = sizes(shapes[0]) + (f" to {sizes(shapes[-1])}, {len(shapes)} sizes" if len(shapes) > 1 else "")
    return f"data: {counts}; {size}, {channels}, {' and '.join(sorted(training.dtypes | validation.dtypes))}"


def _geometries(training: Dataset, validation: Dataset) -> list[str]:
    """The orientations and spacings of volumes, and in how many each is."""
    if not isinstance(training, Folder) or not isinstance(validation, Folder):
        return []
    found = training.geometries + validation.geometries
    told = []
    for name, each in (("axes", [g.axes for g in found]), ("spacing", [g.sides for g in found])):
        most = Counter(each).most_common()
        if most:
            more = f" and {len(most) - SHOWN} more" if len(most) > SHOWN else ""
            shorten = ", ".join(f"{what} in {number}" for what, number in most[:SHOWN])
            hint = "; a network takes voxels as they are stored: resample to have them alike" if len(most) > 1 else ""
            told.append(f"{name}: {shorten}{more}{hint}")
    return told


def _classes(training: Dataset, validation: Dataset) -> list[str]:
    """Each class and its share of the pixels, and files that are no images."""
    if not isinstance(training, Folder) or not isinstance(validation, Folder):
        return [f"classes: {training.classes}"]
    counts = training.counts + validation.counts
    total = sum(counts.values())
    labels = training.labels.values if training.labels else None
    shares = []
    for k in range(training.classes or 0):
        means = f" (value {labels[k]})" if labels else ""
        shares.append(f"{k}{means} in {_share(counts[k], total)}")
    ignored = f"; {IGNORE}, ignored, in {_share(counts[IGNORE], total)}" if counts[IGNORE] else ""
    found = f"classes: {training.classes}, of all pixels {', '.join(shares)}{ignored}"
    folders = sorted({path.parent for dataset in (training, validation) for pair in dataset.pairs for path in pair})
    strays = [path for folder in folders for path in ignored_files(folder)]
    return [found, *([f"passed over, no images: {shorten(strays)}"] if strays else [])]


def _lost(training: Dataset, validation: Dataset) -> str:
    """The classes of which resizing leaves nothing in some masks."""
    if not isinstance(training, Folder) or not isinstance(validation, Folder):
        return ""
    lost = lost_classes([training.mask_counts, validation.mask_counts], training.labels)
    told = [f"class {k} vanishes from {number} of {masks} masks that hold it" for k, (number, masks) in lost.items()]
    return f"; {', '.join(told)}: a larger --size keeps small objects" if told else ""


def _share(count: int, total: int) -> str:
    """A percentage that is 0 % only for nothing.

    >>> _share(0, 100), _share(1, 100000), _share(1, 8)
    ('0 %', '< 0.01 %', '12.50 %')
    """
    share = 100 * count / total
    return "0 %" if not count else "< 0.01 %" if share < 0.01 else f"{share:.2f} %"


def shorten(files: Sequence[Path | str]) -> str:
    """A few of many files, as text."""
    return ", ".join(map(str, files[:5])) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
