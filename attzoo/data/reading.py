"""Reading of images for training and prediction: samples with colours for palette indices, checked, or scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .formats import describe
from .source import FileInfo, naming

LIMIT_16_BITS: Final = 2**16   # smaller integers fit into 16 bits


def read_image(path: str | Path, *, unit: bool = False) -> NDArray[Any]:
    """Read a file and return its image, channels first (C, *S), with the stored values and dtype.

    A picture has 1 channel for grey, 3 for RGB, 4 for RGBA, and 3 if it has a palette. It is rotated as its EXIF
    orientation declares. The array in a .npy, .nii or .nii.gz file must be (H, W), (D, H, W) or (D, H, W, C).

    Args:
        path: the file.
        unit: whether to return float32, with integers divided by the largest integer of their declared bits (255 for
            8 bits) and floats unchanged.

    Raises:
        ValueError: if the file cannot be read, if programs disagree on its values (TIFF's MinIsWhite), if pixels have
            the value that the file declares as no data, if numbers are not finite, or, with `unit`, if 32-bit or 64-bit
            integers do not fill the range of their dtype. The message names the file.
    """
    path = Path(path)
    info = describe_image(path)
    with naming(path):
        array = info.samples()
        if info.no_data is not None and (count := np.count_nonzero(array == info.no_data)):
            got = f"{count} pixels of {info.no_data:.10g}, which the file declares as no data (GDAL_NODATA)"
            fix = "fill these pixels, or if the value was measured there, run gdal_edit.py -unsetnodata on the file"
            raise ValueError(f"expected measured pixels, got {got}: {fix}")
        if info.palette is not None:
            array = _colors(array[0], info.palette)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = np.count_nonzero(~np.isfinite(array))
            raise ValueError(f"expected finite numbers, got NaN or infinity {count} times: replace them in the file")
        return _to_unit(array, info) if unit else array


def describe_image(path: Path) -> FileInfo:
    """Return the metadata of an image's file.

    Raises:
        ValueError: if the file cannot be read, or if programs disagree on its values (TIFF's MinIsWhite). The message
            names the file.
    """
    with naming(path):
        info = describe(path)
        if info.not_an_image:
            raise ValueError(info.not_an_image)
        return info


def read_shape(path: str | Path) -> tuple[int, ...]:
    """Return the shape (C, *S) of a file's image without reading the samples. Raise the errors of `describe_image`."""
    return describe_image(Path(path)).image_shape


def _colors(indices: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """Return the colours (3, H, W) of indices (H, W) into a palette (K, 3). Raise ValueError for an index >= K."""
    if indices.max() >= len(palette):
        fix = "save the file again, for example as RGB"
        expected = f"expected indices below {len(palette)}, the number of colours in the palette"
        raise ValueError(f"{expected}, got {indices.max()}: {fix}")
    return np.ascontiguousarray(np.moveaxis(palette[indices], -1, 0))


def _to_unit(array: NDArray[Any], info: FileInfo) -> NDArray[Any]:
    """Return samples as float32, with integers divided by the largest integer of their declared bits.

    Args:
        array: the samples, or the colours if the file has a palette.
        info: the metadata of the file.

    Raises:
        ValueError: as `check_range`.
    """
    largest = info.largest if info.palette is None else np.iinfo(info.palette.dtype).max
    if array.dtype.kind not in "iu" or largest is None:
        return array.astype(np.float32)
    check_range(array, largest)
    return (array / np.float64(largest)).astype(np.float32)


def check_range(array: NDArray[Any], largest: int) -> None:
    """Raise ValueError if 32-bit or 64-bit integers all fit into 16 bits: divided by `largest`, they would be almost 0.

    Args:
        array: the integers.
        largest: the largest integer of their declared bits.
    """
    largest_magnitude = max(int(array.max()), -int(array.min()))
    if largest > LIMIT_16_BITS and largest_magnitude < LIMIT_16_BITS:
        expected = f"expected numbers that fill the range of {array.dtype} for --normalise unit"
        fix = "save the image as uint8 or uint16, or set --normalise zscore"
        raise ValueError(f"{expected}, got at most {largest_magnitude}: {fix}")
