"""Resizing and normalisation of images, the same in training and in prediction. MONAI resizes and normalises."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import contract
from ..contract import Array
from ..data import FileInfo, package, read_image
from ..data.reading import check_range

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

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is below 1, or `normalise` is none of these.
    """

    size: tuple[int, ...] | None = None
    normalise: str = "zscore"

    def __post_init__(self) -> None:
        """Check the fields, and convert `size` to a tuple of int. Raises the errors of the class."""
        contract.choice("normalise", self.normalise, tuple(NORMALISATIONS))
        if self.size is not None:
            contract.set_fields(self, size=contract.integers("size", self.size))

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

    def read(self, path: Path) -> NDArray[Any]:
        """Return the image (C, *S) in a file: the stored numbers, for "unit" divided by their maximum."""
        return read_image(path, unit=self.normalise == "unit")

    def __call__(self, image: NDArray[Any]) -> Array:
        """Resize and normalise an image.

        Args:
            image: (C, *S) of any real dtype.

        Returns:
            float32 (C, *size), a new array.

        Raises:
            TypeError: the image is not an array of real numbers.
            ValueError: float32 cannot hold the numbers or their squares, values are masked or there are none, or `size`
                has another number of axes.
        """
        check_image(image)
        is_wide = image.dtype.itemsize >= 4 and image.dtype != np.float32
        array: Array = image.astype(np.float64) if is_wide else image.astype(np.float32)
        if self.normalise == "zscore":   # before float32 rounds; a constant channel becomes exactly 0
            array = _subtract_minimum(array)
        if self.normalise == "unit" and image.dtype.kind in "iu":
            check_range(image, np.iinfo(image.dtype).max)
            array /= np.iinfo(image.dtype).max
        if array.dtype == np.float64:
            array = _to_float32(array)
        array = _resize(array, self.size, "trilinear" if array.ndim == 4 else "bilinear")
        if self.normalise == "zscore":
            array = np.asarray(_monai().NormalizeIntensity(channel_wise=True)(array))
        return array

    def mask(self, mask: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a mask (*S) resized to (*size). Each pixel takes the class of the nearest pixel."""
        return np.asarray(_resize(mask[None].astype(np.float32), self.size, "nearest-exact")[0], np.int64)


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


def _resize(array: Array, size: tuple[int, ...] | None, mode: str) -> Array:
    """Return (C, *S) resized to (C, *size) with MONAI's `mode`; the array itself if `size` is None or equal.

    The outer corners of the grids are aligned, not the centers of the corner pixels (align_corners=False). Raises
    ValueError if `size` has another number of axes.
    """
    if size is None or size == array.shape[1:]:
        return array
    if len(size) != array.ndim - 1:
        raise ValueError(f"size must be {array.ndim - 1} numbers, one for each spatial axis, got {size}")
    return np.asarray(_monai().Resize(size, mode=mode)(array))


@cache
def random_flips(spatial_dims: int) -> Any:
    """Return MONAI's transform that flips image and mask, pictures left to right, volumes along each axis."""
    monai = _monai()
    axes = (1,) if spatial_dims == 2 else range(spatial_dims)
    return monai.Compose([monai.RandFlipd(("image", "mask"), prob=0.5, spatial_axis=axis) for axis in axes])


@cache
def _monai() -> Any:
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
