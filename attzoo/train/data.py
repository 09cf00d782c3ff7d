"""Datasets of images with masks.

A sample has the key (epoch, index). It depends on a seed and its key alone, and so do the order of a shuffled epoch and
every flip and change: a resumed run gets the samples of an uninterrupted one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import contract
from ..contract import Array
from ..data import IGNORE, Labels, adding_path, read_mask
from ..data.labels import check_type
from ..plotting import size_text
from .augmentation import change, random_changes
from .files import Pair
from .pairs import check_scales, describe_pairs
from .preparation import NORMALISATIONS as NORMALISATIONS
from .preparation import Preparation as Preparation
from .survey import MaskCounts, class_counts, count_values

Key = tuple[int, int]                          # epoch, index
Sample = tuple[Array, NDArray[np.int64]]       # image float32 (C, *S), mask (*S)


class Dataset(Protocol):
    """Images with masks, indexed by (epoch, index).

    Attributes:
        channels: C.
        spatial_dims: 2 or 3.
        classes: the number of classes, None if it is not known yet.
    """

    channels: int
    spatial_dims: int
    classes: int | None

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""

    def __getitem__(self, key: Key) -> Sample:
        """Return the image float32 (C, *S) and mask int64 (*S) at (epoch, index)."""

    def common_size(self) -> tuple[int, ...]:
        """Return the spatial size of every sample. Raises ValueError if they differ."""


class Folder:
    """A dataset of pairs of files, which `find` returns.

    Reads the header of every file.

    Args:
        pairs: the paths of images and masks.
        preparation: how to resize and normalise every image; the default is `Preparation()`.
        flip: whether to flip image and mask together with probability 1/2, pictures left to right, volumes along each
            axis.
        augment: whether to change images and masks at random, see `augmentation`; images must be z-scored.
        classes: the number of classes, 2 to 255; masks must not hold larger values, except 255, which is ignored. None
            takes the number of labels, or any values.
        labels: the class of each value in the masks, if they do not hold class indices.
        seed: seed of the flips and changes, which also depend on the key of the sample.

    Raises:
        TypeError: `pairs`, `flip`, `augment`, `classes`, `labels` or `seed` has another type.
        ValueError: images differ in their number of channels or axes, or a mask has another size or grid than its
            image, or a file cannot be read; the message has the paths. Or `pairs` is empty, or `classes`, `seed` or the
            size of `preparation` does not fit.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        preparation: Preparation | None = None,
        *,
        flip: bool = False,
        augment: bool = False,
        classes: int | None = None,
        labels: Labels | None = None,
        seed: int = 0,
    ) -> None:
        _check_pairs(pairs)
        check_type(labels)
        self.pairs = [(Path(image), Path(mask)) for image, mask in pairs]
        self.preparation = preparation or Preparation()
        self.flip, self.augment = contract.flag("flip", flip), contract.flag("augment", augment)
        self.labels = labels
        self.classes = _checked_classes(len(labels.values) if labels and classes is None else classes)
        self.seed = contract.integer("seed", seed, 0)
        infos, geometries = describe_pairs(self.pairs, self.preparation)
        self.geometries = [geometry for geometry in geometries if geometry]
        self.spacings = [geometry.spacing if geometry else () for geometry in geometries]
        images = [(image, info.image_dtype) for (image, _), info in zip(self.pairs, infos, strict=True)]
        check_scales(self.preparation, images)
        self.shapes = [info.image_shape for info in infos]
        self.first_image = images[0]
        self.dtypes = Counter(info.image_dtype.name for info in infos)
        self.channels, self.spatial_dims = self.shapes[0][0], len(self.shapes[0]) - 1
        size = self.preparation.size
        if size is not None and len(size) != self.spatial_dims:
            axes = f"one for each spatial axis of {pairs[0][0]}"
            raise ValueError(f"size must be {self.spatial_dims} numbers, {axes}, got {size}")
        self.sizes = []   # of prepared images
        for (image, _), shape, spacing in zip(self.pairs, self.shapes, self.spacings, strict=True):
            with adding_path(image):
                self.sizes.append(self.preparation.size_of(shape[1:], spacing))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, key: Key) -> Sample:
        """Return image float32 (C, *S) and mask int64 (*S) at (epoch, index).

        Raises OSError or ValueError if a file cannot be read or has another size than before, and ValueError if a value
        of the mask is not a class.
        """
        image, mask = self.prepared(key[1])
        return self.changed(image, mask, key)

    def prepared(self, index: int) -> Sample:
        """Return an image and its mask, resized and normalised. Raises the errors of `__getitem__`."""
        image, mask = self.preparation.read(self.pairs[index][0]), self.read_mask(index)
        size = self.shapes[index][1:]
        if not image.shape[1:] == mask.shape == size:   # the files changed
            got = f"{image.shape[1:]} and {mask.shape}: do not change files while they are in use"
            raise ValueError(f"expected {self.pairs[index][0]} and its mask to keep the size {size}, got {got}")
        with adding_path(self.pairs[index][0]):
            image = self.preparation(image, self.spacings[index])
        return image, self.preparation.mask(mask, self.spacings[index])

    def files(self) -> list[Path]:
        """Return the files of all images and masks."""
        return [file for image, mask in self.pairs for file in (*self.preparation.files(image), mask)]

    def read_mask(self, index: int) -> NDArray[np.int64]:
        """Return the mask (*S), not resized. Raises ValueError, with the path, if a value is not a class."""
        path = self.pairs[index][1]
        mask = read_mask(path, self.labels)
        limit = IGNORE if self.classes is None else self.classes
        if (is_wrong := (mask >= limit) & (mask != IGNORE)).any():
            got = f"in {path}, got {mask[is_wrong][0]}"
            larger_fix = "set a larger --classes, or " if mask[is_wrong].max() < IGNORE else ""
            fix = "" if self.labels else f": {larger_fix}list the value of each class by --labels"
            raise ValueError(f"expected class indices from 0 to {limit - 1}, or {IGNORE} to ignore, {got}{fix}")
        return mask

    @cached_property
    def mask_counts(self) -> MaskCounts:
        """Return how many pixels and masks have each value, and which values resizing removes. Reads all masks."""
        resize = None if self.preparation.size is None else self.preparation.mask
        return count_values((mask for _, mask in self.pairs), self.labels, resize)

    @cached_property
    def counts(self) -> Counter[int]:
        """Return the number of pixels of each class, and of 255 (ignored), in all masks before resizing. Reads all.

        Raises:
            ValueError: if masks contain values that are not classes; the message has the counts or the path.
        """
        counts = class_counts(self.mask_counts.counts, self.labels)
        if max(counts.keys() - {IGNORE}, default=0) >= (self.classes or IGNORE):
            for index in range(len(self)):
                self.read_mask(index)   # raises with the path
        return counts

    def common_size(self) -> tuple[int, ...]:
        """Return the spatial size of every sample. Raises ValueError, with two paths, if they differ."""
        size = self.sizes[0]
        for (path, _), other_size in zip(self.pairs, self.sizes, strict=True):
            if other_size != size:
                got = f"{self.pairs[0][0]} of {size_text(size)} and {path} of {size_text(other_size)}"
                text = ",".join(map(str, size))
                fix = f"set --patch-size, such as {text}, to train on random crops of this size and predict in sliding "
                fix += f"windows; or --size, such as {text}, to resize all to this size; or --batch 1"
                raise ValueError(f"expected images of one size to batch them, got {got}: {fix}")
        return size

    def changed(self, image: Array, mask: NDArray[np.int64], key: Key) -> Sample:
        """Return image and mask, flipped and changed at random by the seed and the key, if the folder does either."""
        if not (self.flip or self.augment):
            return image, mask
        changes = random_changes(self.spatial_dims, self.flip, self.augment)
        return change(changes, image, mask, (self.seed, *key))


def _check_pairs(pairs: Any) -> None:
    """Raise TypeError or ValueError unless `pairs` is a sequence with at least one pair of paths."""
    fix = "attzoo.train.files.find returns those of a folder"
    if isinstance(pairs, (str, Path)):
        raise TypeError(f"expected pairs of the paths of an image and its mask, got a path, {pairs}: {fix}")
    if not pairs:
        raise ValueError(f"expected at least one pair (image, mask) in the argument `pairs`, got none: {fix}")


def _checked_classes(classes: int | None) -> int | None:
    """Return the number of classes as int, None if it is not known. Raise TypeError or ValueError unless 2..IGNORE."""
    if classes is None:
        return None
    number = contract.integer("classes", classes)
    if number > IGNORE:
        raise ValueError(f"classes must be <= {IGNORE}, because masks ignore the value {IGNORE}, got {classes}")
    if number == 1:
        fix = f"set --classes 2 or more, or for masks of 0 and {IGNORE} --labels 0,{IGNORE}"
        raise ValueError(f"expected at least two classes, got one: {fix}")
    return number
