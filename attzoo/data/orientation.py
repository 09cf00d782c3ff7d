"""Turning pictures upright, by the orientation that EXIF and TIFF declare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(C, H, W) as stored -> upright, by an orientation from 1 to 8.

    Source: TIFF 6.0, tag 274: rows and columns are counted from the corners that the number names.
    """
    if transposes(orientation):
        array = array.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        array = array[:, ::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, :, ::-1]
    return np.asarray(array)


def known(orientation: Any) -> int:
    """The orientation that a file declares, 1 where that is none from 1 to 8.

    >>> known(6), known(0), known("up")
    (6, 1, 1)
    """
    return orientation if orientation in range(1, 9) else 1


def turned(size: Sequence[int], orientation: int) -> tuple[int, ...]:
    """The size (H, W) of a picture once it is upright."""
    return tuple(size[::-1]) if transposes(orientation) else tuple(size)


def transposes(orientation: int) -> bool:
    """Whether turning by an orientation exchanges rows and columns."""
    return orientation in (5, 6, 7, 8)
