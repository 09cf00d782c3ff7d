"""Images as training and prediction take them, from what a file stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .formats import describe
from .source import Source, naming

SMALL: Final = 2**16   # below which integers need no more than 16 bits


def read_image(path: str | Path, *, unit: bool = False) -> NDArray[Any]:
    """The image (C, *S) in a file, with the values and in the dtype that the file stores.

    Pictures keep their channels: 1 of grey, 3 of RGB, 4 of RGBA; a palette's become RGB. They are turned upright, as
    their EXIF has it. An array of a .npy, .nii or .nii.gz is (H, W), (D, H, W) or (D, H, W, C).
    unit: give float32, integers divided by the largest that their declared bits can hold, floats as they are.
    Raises ValueError, naming the file, for one that can't be read, whose values have no one meaning, or that holds a
    number that is not finite.
    """
    path = Path(path)
    source = describe_image(path)
    with naming(path):
        array = source.samples()
        if source.palette is not None:
            array = _colors(array[0], source.palette)
        if source.no_data is not None and (count := np.count_nonzero(array == source.no_data)):
            declared = f"{count} of {source.no_data:.10g}, which the file declares as no data (GDAL_NODATA)"
            fix = "fill them, or where they were measured remove the declaration, with gdal_edit.py -unsetnodata"
            raise ValueError(f"expected measured pixels, got {declared}: {fix}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"expected finite numbers, got {np.count_nonzero(~np.isfinite(array))} that are not")
        return _divided(array, source) if unit else array


def describe_image(path: Path) -> Source:
    """What the head of an image's file declares.

    Raises ValueError, naming the file, for one that can't be read, or whose values have no one meaning.
    """
    with naming(path):
        source = describe(path)
        if source.not_an_image:
            raise ValueError(source.not_an_image)
        return source


def read_shape(path: str | Path) -> tuple[int, ...]:
    """The shape (C, *S) that `read_image` would give, from the head of the file. Raises as it does."""
    return describe_image(Path(path)).image_shape


def _colors(indices: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """(H, W) -> (3, H, W)."""
    if indices.max() >= len(palette):
        raise ValueError(f"expected indices into a palette of {len(palette)} colours, got {indices.max()}")
    return np.ascontiguousarray(np.moveaxis(palette[indices], -1, 0))


def _divided(array: NDArray[Any], source: Source) -> NDArray[Any]:
    """float32; integers divided by the largest that they can be."""
    largest = source.largest if source.palette is None else np.iinfo(source.palette.dtype).max
    if array.dtype.kind not in "iu" or largest is None:
        return array.astype(np.float32)
    check_range(array, largest)
    return (array / np.float64(largest)).astype(np.float32)


def check_range(array: NDArray[Any], largest: int) -> None:
    """Raise ValueError for integers of 32 bits or more that are small, of which `largest` leaves nothing."""
    found = max(int(array.max()), -int(array.min()))
    if largest > SMALL and found < SMALL:
        expected = f"expected numbers that fill the range of {array.dtype} for --normalise unit"
        fix = "save it as uint8 or uint16, or take --normalise zscore"
        raise ValueError(f"{expected}, got at most {found}: {fix}")
