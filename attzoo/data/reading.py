"""Images for training and prediction, from the stored samples of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .formats import describe
from .source import FileInfo, naming

LIMIT_16_BITS: Final = 2**16   # smaller integers fit into 16 bits


def read_image(path: str | Path, *, unit: bool = False) -> NDArray[Any]:
    """Return the image (C, *S) in a file, with the stored values and dtype.

    Pictures keep their channels: 1 for grey, 3 for RGB, 4 for RGBA; a palette gives RGB. They are rotated as their EXIF
    orientation declares. The array in a .npy, .nii or .nii.gz file is (H, W), (D, H, W) or (D, H, W, C).

    Args:
        path: the file.
        unit: return float32, with integers divided by the largest integer of their declared bits and floats unchanged.

    Raises:
        ValueError: if the file cannot be read, its values are ambiguous, or it has pixels without data or numbers that
            are not finite. The message names the file.
    """
    path = Path(path)
    source = describe_image(path)
    with naming(path):
        array = source.samples()
        if source.no_data is not None and (count := np.count_nonzero(array == source.no_data)):
            got = f"{count} of {source.no_data:.10g}, which the file declares as no data (GDAL_NODATA)"
            fix = "fill these pixels, or if they are measured values run gdal_edit.py -unsetnodata"
            raise ValueError(f"expected measured pixels, got {got}: {fix}")
        if source.palette is not None:
            array = _colors(array[0], source.palette)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"expected finite numbers, got {np.count_nonzero(~np.isfinite(array))} that are not")
        return _to_unit(array, source) if unit else array


def describe_image(path: Path) -> FileInfo:
    """Return the metadata of an image's file.

    Raises:
        ValueError: if the file cannot be read, or its values are ambiguous. The message names the file.
    """
    with naming(path):
        source = describe(path)
        if source.not_an_image:
            raise ValueError(source.not_an_image)
        return source


def read_shape(path: str | Path) -> tuple[int, ...]:
    """Return the shape (C, *S) of the image from the file's metadata. Raises the errors of `describe_image`."""
    return describe_image(Path(path)).image_shape


def _colors(indices: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """Replace the palette indices (H, W) by their colours, (3, H, W)."""
    if indices.max() >= len(palette):
        raise ValueError(f"expected indices into a palette of {len(palette)} colours, got {indices.max()}")
    return np.ascontiguousarray(np.moveaxis(palette[indices], -1, 0))


def _to_unit(array: NDArray[Any], source: FileInfo) -> NDArray[Any]:
    """Convert samples to float32; divide integers by the largest integer of their declared bits."""
    largest = source.largest if source.palette is None else np.iinfo(source.palette.dtype).max
    if array.dtype.kind not in "iu" or largest is None:
        return array.astype(np.float32)
    check_range(array, largest)
    return (array / np.float64(largest)).astype(np.float32)


def check_range(array: NDArray[Any], largest: int) -> None:
    """Raise ValueError if 32-bit or 64-bit integers all fit into 16 bits.

    Divided by `largest`, such values would be almost 0.
    """
    magnitude = max(int(array.max()), -int(array.min()))
    if largest > LIMIT_16_BITS and magnitude < LIMIT_16_BITS:
        expected = f"expected numbers that fill the range of {array.dtype} for --normalise unit"
        fix = "save it as uint8 or uint16, or set --normalise zscore"
        raise ValueError(f"{expected}, got at most {magnitude}: {fix}")
