"""Images with masks as training takes them: prepared, flipped at random, in batches.

A dataset is asked for (epoch, index), so that what it gives, the order of a shuffled epoch and every flip follow from
a seed and these two numbers alone, and a run that resumes at an epoch meets what it would have met. MONAI resizes,
flips and normalises.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import contract
from ..contract import Array
from ..data import (
    IGNORE,
    Geometry,
    Labels,
    Source,
    check_same_grid,
    check_same_map,
    describe_image,
    describe_mask,
    package,
    read_image,
    read_mask,
    transposes,
)
from ..data.reading import check_range
from ..look import sizes
from .files import Pair
from .survey import MaskCounts, class_counts, count_values

_RESIZE: Final = ": resize the mask by the nearest pixel, or take the image that it was drawn on"
NORMALISATIONS: Final = ("zscore", "unit", "none")
MOST: Final = 1e15   # by which numbers of an image may differ: the squares of all its pixels have a sum in float32
Key = tuple[int, int]                          # epoch, index
Sample = tuple[Array, NDArray[np.int64]]       # image float32 (C, *S), mask (*S)


class Dataset(Protocol):
    """Images with masks, by (epoch, index).

    channels: C. spatial_dims: 2 or 3. classes: their number, or None while unknown.
    """

    channels: int
    spatial_dims: int
    classes: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Sample: ...

    def common_size(self) -> tuple[int, ...]:
        """The spatial size of every sample; raises ValueError where they differ."""


# ---- one image -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """What happens to an image before a network sees it, in training and in use.

    size: the spatial size to resize to, linearly; None keeps each image's own.
    normalise: "zscore" (each channel to mean 0 and standard deviation 1; a constant one to 0), "unit" (integers divided
    by the largest of their type, or in a file by the largest of its bits, floats as they are) or "none".
    Raises TypeError or ValueError for other values.
    """

    size: tuple[int, ...] | None = None
    normalise: str = "zscore"

    def __post_init__(self) -> None:
        contract.choice("normalise", self.normalise, NORMALISATIONS)
        if self.size is not None:
            contract.set_fields(self, size=tuple(contract.integer("size", side) for side in self.size))

    def scale(self, dtype: np.dtype[Any]) -> str:
        """What tells the scale that numbers of a file's dtype come out on: those of one network must agree."""
        if self.normalise == "zscore":
            return "any"
        return "floats" if dtype.kind == "f" else "integers" if self.normalise == "unit" else dtype.name

    def read(self, path: Path) -> NDArray[Any]:
        """The image (C, *S) in a file, as this takes it: as it is stored, or for "unit" divided already."""
        return read_image(path, unit=self.normalise == "unit")

    def __call__(self, image: NDArray[Any]) -> Array:
        """(C, *S) of any real dtype -> float32 (C, *size), a new array.

        Raises ValueError for numbers that float32 can't hold.
        """
        is_wide = image.dtype.itemsize >= 4 and image.dtype != np.float32
        array: Array = image.astype(np.float64) if is_wide else image.astype(np.float32)
        if self.normalise == "zscore":   # before digits are lost; constants become 0 exactly
            array = _from_zero(array)
        if self.normalise == "unit" and image.dtype.kind in "iu":
            check_range(image, np.iinfo(image.dtype).max)
            array /= np.iinfo(image.dtype).max
        if array.dtype == np.float64:
            array = _single(array)
        array = _resized(array, self.size, "trilinear" if array.ndim == 4 else "bilinear")
        if self.normalise == "zscore":
            array = np.asarray(_monai().NormalizeIntensity(channel_wise=True)(array))
        return array

    def mask(self, mask: NDArray[np.int64]) -> NDArray[np.int64]:
        """(*S) -> (*size), the nearest pixel's class."""
        return np.asarray(_resized(mask[None].astype(np.float32), self.size, "nearest-exact")[0], np.int64)


def _from_zero(array: Array) -> Array:
    """The array less the smallest number of each channel; in float64 also times a power of two, which z-scores undo.

    Raises ValueError for numbers so large that z-scores of the others would all be one.
    """
    axes = tuple(range(1, array.ndim))
    smallest, largest = (np.float64(each(axis=axes, keepdims=True)) for each in (array.min, array.max))
    if (largest - smallest).max() > MOST:
        got = f"{smallest.min():.4g} to {largest.max():.4g}"
        fix = "fill what was not measured with a number near the others, or divide the image by its largest"
        raise ValueError(f"expected numbers that float32 can hold the squares of, got {got}: {fix}")
    array -= smallest.astype(array.dtype)
    if array.dtype == np.float64:
        np.ldexp(array, -np.frexp(largest - smallest)[1], out=array)
    return array


def _single(array: Array) -> Array:
    """float64 -> float32. Raises ValueError where a number is too large."""
    if (largest := np.abs(array).max()) > np.finfo(np.float32).max:
        raise ValueError(f"expected numbers that float32 can hold, got {largest:.4g}: divide the image by its largest")
    return array.astype(np.float32)


def _resized(array: Array, size: tuple[int, ...] | None, mode: str) -> Array:
    """(C, *S) -> (C, *size). Pixels are areas: the corners of the old and new grid coincide, not their middles."""
    if size is None or size == array.shape[1:]:
        return array
    if len(size) != array.ndim - 1:
        raise ValueError(f"expected size for {array.ndim - 1} spatial axes, got {size}")
    return np.asarray(_monai().Resize(size, mode=mode)(array))


@cache
def _monai() -> Any:
    """MONAI's transforms, loaded when first needed; MONAI loads TensorBoard."""
    with without_tensorflow():
        return package("monai.transforms")


@contextmanager
def without_tensorflow() -> Iterator[None]:
    """Let TensorBoard load, or be used first, without TensorFlow, which takes seconds and much memory for nothing here.

    It does without where it finds a module of the name below.
    """
    contract.triton_first()
    name = "tensorboard.compat.notf"
    spare = "tensorflow" not in sys.modules and name not in sys.modules
    if spare:
        sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        if spare:
            del sys.modules[name]


# ---- a folder --------------------------------------------------------------------------------------


class Folder:
    """The dataset of pairs of files, as `find` gives them.

    preparation: of each image. flip: mirror image and mask with probability 1/2, by seed and key; a picture left to
    right, since few can stand on their heads, a volume along each axis.
    classes: their number, 2 to 255, which masks must keep to (255 counts as none); None leaves it open, or takes that
    of labels. labels: what the values in masks mean, where they aren't class indices.
    Looks at the head of every file. Raises ValueError, naming files, unless all images have the same number of channels
    and of axes and each mask its image's size and grid, or for a file that can't be read.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        preparation: Preparation | None = None,
        *,
        flip: bool = False,
        classes: int | None = None,
        labels: Labels | None = None,
        seed: int = 0,
    ) -> None:
        if not pairs:
            raise ValueError("expected at least one image, got none")
        self.pairs = list(pairs)
        self.preparation = preparation or Preparation()
        self.flip = contract.flag("flip", flip)
        self.labels = labels
        classes = len(labels.values) if labels and classes is None else classes
        self.classes = None if classes is None else contract.integer("classes", classes)
        if self.classes and self.classes > IGNORE:
            raise ValueError(f"classes must be <= {IGNORE}, which masks ignore, got {classes}")
        if classes == 1:
            hint = f"where masks hold only 0 and {IGNORE}, which is ignored, set --labels 0,{IGNORE}"
            raise ValueError(f"expected at least two classes, got one; {hint}")
        self.seed = contract.integer("seed", seed, 0)
        heads, self.geometries = _heads(self.pairs)
        images = [(image, head.image_dtype) for (image, _), head in zip(self.pairs, heads, strict=True)]
        check_scales(self.preparation, images)
        self.shapes = [head.image_shape for head in heads]
        self.first = images[0]
        self.dtypes = Counter(head.image_dtype.name for head in heads)
        self.channels, self.spatial_dims = self.shapes[0][0], len(self.shapes[0]) - 1
        size = self.preparation.size
        if size is not None and len(size) != self.spatial_dims:
            raise ValueError(f"expected size for {self.spatial_dims} spatial axes, those of {pairs[0][0]}, got {size}")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> Sample:
        """Image float32 (C, *S) and mask int64 (*S) at (epoch, index). ValueError names a file that is wrong."""
        epoch, index = key
        image, mask = self.preparation.read(self.pairs[index][0]), self.read_mask(index)
        if not image.shape[1:] == mask.shape == self.shapes[index][1:]:   # the files changed
            got = f"{image.shape} and {mask.shape}"
            raise ValueError(f"expected {self.pairs[index][0]} and its mask as they were at first, got {got}")
        image, mask = self.preparation(image), self.preparation.mask(mask)
        return self._flipped(image, mask, epoch, index) if self.flip else (image, mask)

    def read_mask(self, index: int) -> NDArray[np.int64]:
        """The mask (*S) as it is in its file. Raises ValueError, naming the file, for a class that does not exist."""
        path = self.pairs[index][1]
        mask = read_mask(path, self.labels)
        limit = IGNORE if self.classes is None else self.classes
        if (wrong := (mask >= limit) & (mask != IGNORE)).any():
            got = f"in {path}, got {mask[wrong][0]}"
            larger = "set a larger --classes, or " if mask[wrong].max() < IGNORE else ""
            fix = "" if self.labels else f": {larger}give each value its class by --labels"
            raise ValueError(f"expected classes from 0 to {limit - 1}, or {IGNORE} to ignore, {got}{fix}")
        return mask

    @cached_property
    def mask_counts(self) -> MaskCounts:
        """What is in all masks, and what resizing leaves of it; reads all of them."""
        resize = None if self.preparation.size is None else self.preparation.mask
        return count_values((mask for _, mask in self.pairs), self.labels, resize)

    @cached_property
    def counts(self) -> Counter[int]:
        """The pixels of each class in all masks, 255 for those that count nowhere; reads all of them.

        Raises ValueError for values that are no classes, with their counts over all masks, and as `read_mask`.
        """
        counts = class_counts(self.mask_counts.counts, self.labels)
        if max(counts.keys() - {IGNORE}, default=0) >= (self.classes or IGNORE):
            for index in range(len(self)):
                self.read_mask(index)   # raises, naming the file
        return counts

    def common_size(self) -> tuple[int, ...]:
        """The spatial size of every sample. Raises ValueError, naming two files, where they differ."""
        if self.preparation.size is not None:
            return self.preparation.size
        size = self.shapes[0][1:]
        for (path, _), shape in zip(self.pairs, self.shapes, strict=True):
            if shape[1:] != size:
                got = f"{self.pairs[0][0]} of {sizes(size)} and {path} of {sizes(shape[1:])}"
                fix = f"set --size {','.join(map(str, size))}, say, to resize all, or --batch 1"
                raise ValueError(f"expected images of one size to make batches of, got {got}: {fix}")
        return size

    def _flipped(self, image: Array, mask: NDArray[np.int64], epoch: int, index: int) -> Sample:
        flips = _flips(self.spatial_dims)
        flips.set_random_state(int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]))
        both = flips({"image": image, "mask": mask[None]})
        return np.array(both["image"]), np.array(both["mask"][0])


def _heads(pairs: Sequence[Pair]) -> tuple[list[Source], list[Geometry]]:
    """What each image's file declares, and the geometries of volumes that have one.

    Raises ValueError unless all fit to the first, and each mask to its image.
    """
    heads: list[Source] = []
    geometries: list[Geometry] = []
    first = pairs[0][0]
    for image, mask in pairs:
        head, labelled = describe_image(image), describe_mask(mask)
        heads.append(head)
        shape, expected = head.image_shape, heads[0].image_shape
        if len(shape) != len(expected):
            got = f"{first} of {len(expected) - 1} and {image} of {len(shape) - 1}"
            raise ValueError(f"expected images of the same number of axes, got {got}: keep pictures and volumes apart")
        if shape[0] != expected[0]:
            got = f"{first} of {expected[0]} and {image} of {shape[0]}"
            raise ValueError(f"expected images of the same number of channels, got {got}: save all as grey or as RGB")
        if labelled.shape[1:] != shape[1:]:
            got = f"{sizes(labelled.shape[1:])}{_turned(head, labelled) or _as_volume(image, shape) or _RESIZE}"
            raise ValueError(f"expected {mask} of its image's size, {sizes(shape[1:])}, got {got}")
        _check_orientation(image, head, mask, labelled)
        check_same_map(image, head, mask, labelled)
        if geometry := check_same_grid(image, mask):
            geometries.append(geometry)
    return heads, geometries


def check_scales(preparation: Preparation, images: Sequence[tuple[Path, np.dtype[Any]]]) -> None:
    """Raise ValueError, naming two files, where the numbers of images come out of a preparation on different scales."""
    first, its = images[0]
    for image, dtype in images:
        if preparation.scale(dtype) != preparation.scale(its):
            got = f"{first} of {its} and {image} of {dtype}"
            fix = "convert all to one dtype, or take --normalise zscore"
            raise ValueError(f"expected images of one scale for --normalise {preparation.normalise}, got {got}: {fix}")


def _as_volume(image: Path, shape: tuple[int, ...]) -> str:
    """In words, that an array which may be a picture is taken as a volume."""
    if len(shape) != 4 or shape[0] != 1 or min(shape[1], shape[-1]) > 4:
        return ""
    fix = "save a picture (H, W, C) as PNG or TIFF"
    return f": {image} holds three axes, which are read as a volume (D, H, W); {fix}"


def _turned(head: Source, mask: Source) -> str:
    """In words, that a size is one after turning."""
    if head.orientation == mask.orientation == 1:
        return ""
    return f", both upright: the image declares orientation {head.orientation}, the mask {mask.orientation}"


def _check_orientation(image: Path, head: Source, mask: Path, labelled: Source) -> None:
    """Raise ValueError where an image and its mask declare different orientations, and their sizes don't tell which."""
    one, two = head.orientation, labelled.orientation
    is_told = transposes(one) != transposes(two) and len(set(head.shape[1:])) > 1   # the other way they would not fit
    if one != two and not is_told:
        got = f"orientation {one} in {image} and {two} in {mask}, so that one is turned and the other is not"
        raise ValueError(f"expected an image and mask of one orientation, got {got}: save both upright, without one")


@cache
def _flips(spatial_dims: int) -> Any:
    monai = _monai()
    axes = (1,) if spatial_dims == 2 else range(spatial_dims)
    return monai.Compose([monai.RandFlipd(("image", "mask"), prob=0.5, spatial_axis=axis) for axis in axes])
