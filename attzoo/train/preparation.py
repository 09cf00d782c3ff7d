"""Resizing and normalisation of images, the same in training and in prediction. MONAI resizes and normalises."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import contract
from ..contract import Array
from ..data import (
    FileInfo,
    adding_path,
    channel_files,
    describe_channels,
    describe_image,
    package,
    read_channels,
    read_image,
)
from ..data.reading import check_range
from ..plotting import size_text

MAX_RESAMPLED: Final = 2**30   # largest number of pixels of a resampled image; volumes have up to 2**27
NORMALISATIONS: Final = {   # name -> what it does, for help texts
    "zscore": "each channel has mean 0 and standard deviation 1",
    "unit": "integers are divided by their maximum",
    "none": "no change",
}
MAX_RANGE: Final = 1e15   # of the numbers in an image: float32 holds the sum of squares over all of its pixels


@dataclass(frozen=True)
class Preparation:
    """Resize and normalise images for a network, and resize their masks.

    Args:
        size: the spatial size to resize to, with linear interpolation; None keeps the size of each image.
        normalise: "zscore" (each channel has mean 0 and standard deviation 1; a constant channel is 0), "unit" (divide
            integers by the maximum of their dtype, or in a file by the maximum for its bit depth; keep floats) or
            "none".
        spacing: the distance between voxels along each axis, in millimetres, to resample volumes to, with linear
            interpolation; None keeps the grid of each volume.
        channel_files: whether each channel of an image is a file of its own, see `attzoo.data.channel_files`. The path
            of an image is then that of the first file.

    Raises:
        TypeError: a size is not an integer, or a spacing not a number.
        ValueError: a size is below 1, a spacing is not above 0, both are given, or `normalise` is none of these.
    """

    size: tuple[int, ...] | None = None
    normalise: str = "zscore"
    spacing: tuple[float, ...] | None = None
    channel_files: bool = False

    def __post_init__(self) -> None:
        """Check the fields, and convert `size` to a tuple of int. Raises the errors of the class."""
        contract.choice("normalise", self.normalise, tuple(NORMALISATIONS))
        if self.size is not None:
            contract.set_fields(self, size=contract.integers("size", self.size))
        if self.spacing is not None:
            contract.set_fields(self, spacing=contract.positives("spacing", self.spacing))
            if self.size is not None:
                got = f"size={self.size} and spacing={self.spacing}"
                raise ValueError(f"expected a size or a spacing to resize to, got {got}: leave out one of them")

    def size_of(self, size: Sequence[int], spacing: Sequence[float] = ()) -> tuple[int, ...]:
        """Return the spatial size of a prepared image.

        Args:
            size: the spatial size of the image.
            spacing: the distance between its voxels along each axis or more, in millimetres; () if it is unknown.

        Raises:
            ValueError: the spacing is unknown, but images are to be resampled; or the spacing to resample to has
                another number of axes, or gives more than MAX_RESAMPLED pixels.
        """
        if self.spacing is None:
            return self.size or tuple(size)
        if len(self.spacing) != len(size):
            raise ValueError(f"spacing must be {len(size)} numbers, one for each spatial axis, got {self.spacing}")
        if not spacing:
            fix = "save it as .nii.gz, or leave out --spacing"
            raise ValueError(f"expected a volume whose file declares the spacing of its voxels, got none: {fix}")
        sides = zip(size, spacing, self.spacing, strict=False)
        result = tuple(max(1, round(side * distance / target)) for side, distance, target in sides)
        if prod(result) > MAX_RESAMPLED:
            got = f"{self.spacing}, with which {size_text(size)} voxels become {size_text(result)}"
            raise ValueError(f"spacing must be in millimetres and not much finer than the volume's, got {got}")
        return result

    def scale(self, dtype: np.dtype[Any]) -> str:
        """Return a text that identifies the scale of the values of prepared images, for files with this dtype.

        Images for one network must have equal texts.
        """
        if self.normalise == "zscore":
            return "any"
        return "floats" if dtype.kind == "f" else "integers" if self.normalise == "unit" else dtype.name

    def check_bits(self, info: FileInfo) -> None:
        """Raise ValueError for an image of 2 or 4 bits, if `normalise` is "none".

        Programs may save a picture with fewer bits, which multiplies its integers by another factor.
        """
        if self.normalise == "none" and info.has_few_bits:
            got = f"integers up to {info.largest}, which stand for greys up to 255"
            fix = "save the image with 8 bits, or set --normalise unit"
            raise ValueError(f"expected an image of 8 bits or more for --normalise none, got {got}: {fix}")

    def files(self, path: Path) -> list[Path]:
        """Return the files of an image: several with `channel_files`, else `path` alone."""
        return channel_files(path) if self.channel_files else [path]

    def describe(self, path: Path) -> FileInfo:
        """Return the metadata of an image.

        Raises:
            ValueError: an image's channels are in files whose dtypes have different scales, as `check_bits`, or as
                `attzoo.data.describe_image` and `describe_channels`.
        """
        infos = [describe_image(file) for file in self.files(path)]
        for file, info in zip(self.files(path), infos, strict=True):
            with adding_path(file):
                self.check_bits(info)
            if self.scale(info.image_dtype) != self.scale(infos[0].image_dtype):
                got = f"{path} of {infos[0].image_dtype} and {file} of {info.image_dtype}"
                fix = "convert all to one dtype, or set --normalise zscore"
                raise ValueError(f"expected channels of one scale for --normalise {self.normalise}, got {got}: {fix}")
        return describe_channels(path) if self.channel_files else infos[0]

    def read(self, path: Path) -> NDArray[Any]:
        """Return the image (C, *S) in a file: the stored numbers, for "unit" divided by their maximum."""
        return (read_channels if self.channel_files else read_image)(path, unit=self.normalise == "unit")

    def __call__(self, image: NDArray[Any], spacing: Sequence[float] = ()) -> Array:
        """Resize and normalise an image.

        Args:
            image: (C, *S) of any real dtype.
            spacing: the distance between its voxels, as in `size_of`.

        Returns:
            float32 (C, *size), a new array.

        Raises:
            TypeError: the image is not an array of real numbers.
            ValueError: float32 cannot hold the numbers or their squares, values are masked or there are none, `size` or
                `spacing` has another number of axes, or as `size_of`.
        """
        check_image(image)
        size = self.size_of(image.shape[1:], spacing)
        is_wide = image.dtype.itemsize >= 4 and image.dtype != np.float32
        array: Array = image.astype(np.float64) if is_wide else image.astype(np.float32)
        if self.normalise == "zscore":   # before float32 rounds; a constant channel becomes exactly 0
            array = _subtract_minimum(array)
        if self.normalise == "unit" and image.dtype.kind in "iu":
            check_range(image, np.iinfo(image.dtype).max)
            array /= np.iinfo(image.dtype).max
        if array.dtype == np.float64:
            array = _to_float32(array)
        array = _resize(array, size, "trilinear" if array.ndim == 4 else "bilinear")
        if self.normalise == "zscore":
            array = np.asarray(transforms().NormalizeIntensity(channel_wise=True)(array))
        return array

    def mask(self, mask: NDArray[np.int64], spacing: Sequence[float] = ()) -> NDArray[np.int64]:
        """Return a mask (*S) resized to (*size). Each pixel takes the class of the nearest pixel.

        spacing: the distance between the voxels of its image, as in `size_of`.
        """
        size = self.size_of(mask.shape, spacing)
        if size == mask.shape:   # a float32 copy of a large volume would need much memory
            return mask
        return np.asarray(_resize(mask[None].astype(np.float32), size, "nearest-exact")[0], np.int64)


def check_image(image: Any) -> None:
    """Raise TypeError or ValueError unless an image is an array of real numbers, without masked values."""
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "biuf":
        got = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        fix = "read a file by attzoo.data.read_image, or convert other arrays by numpy.asarray"
        raise TypeError(f"expected an image as a NumPy array of real numbers, got {got}: {fix}")
    if np.ma.is_masked(image):
        fix = "fill the masked values first, for example by image.filled(0)"
        raise ValueError(f"expected an image without masked values, got a masked array: {fix}")
    if not image.size:
        raise ValueError(f"expected an image of at least one pixel, got the shape {image.shape}")


def _subtract_minimum(array: Array) -> Array:
    """Subtract the minimum of each channel of an array (C, *S) in place, and return the array.

    float64 is also divided by a power of two near the range, which z-scores cancel.

    Raises:
        ValueError: the range is above MAX_RANGE, so that float32 cannot hold the squares.
    """
    axes = tuple(range(1, array.ndim))
    smallest, largest = (np.float64(reduce(axis=axes, keepdims=True)) for reduce in (array.min, array.max))
    if (largest - smallest).max() > MAX_RANGE:
        got = f"{smallest.min():.4g} to {largest.max():.4g}"
        fix = "set pixels without a measurement to a number near the others, or divide the image by its maximum"
        expected = f"numbers whose squares float32 can hold, a range of at most {MAX_RANGE:g}"
        raise ValueError(f"expected {expected}, got {got}: {fix}")
    array -= smallest.astype(array.dtype)
    if array.dtype == np.float64:
        np.ldexp(array, -np.frexp(largest - smallest)[1], out=array)
    return array


def _to_float32(array: Array) -> Array:
    """Return a float32 copy of a float64 array. Raises ValueError if a number is too large for float32."""
    if (largest := np.abs(array).max()) > np.finfo(np.float32).max:
        raise ValueError(f"expected numbers that float32 can hold, got {largest:.4g}: divide the image by its maximum")
    return array.astype(np.float32)


def _resize(array: Array, size: tuple[int, ...], mode: str) -> Array:
    """Return (C, *S) resized to (C, *size) with MONAI's `mode`; the array itself if it has this size.

    The outer corners of the grids are aligned, not the centers of the corner pixels (align_corners=False). Raises
    ValueError if `size` has another number of axes.
    """
    if size == array.shape[1:]:
        return array
    if len(size) != array.ndim - 1:
        raise ValueError(f"size must be {array.ndim - 1} numbers, one for each spatial axis, got {size}")
    return np.asarray(transforms().Resize(size, mode=mode)(array))


@cache
def transforms() -> Any:
    """Return MONAI's transforms, imported at the first call; MONAI imports TensorBoard."""
    with without_tensorflow():
        return package("monai.transforms")


@contextmanager
def without_tensorflow() -> Iterator[None]:
    """Stop TensorBoard in the `with` block from importing TensorFlow, which takes seconds and is not needed.

    TensorBoard does not import TensorFlow if a module of the name below exists.
    """
    contract.triton_first()
    name = "tensorboard.compat.notf"
    add = "tensorflow" not in sys.modules and name not in sys.modules
    if add:
        sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        if add:
            del sys.modules[name]
