"""Rotation of pictures by the orientation that EXIF and TIFF declare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return stored samples (C, H, W) rotated and mirrored for display, as a declared orientation from 1 to 8 asks.

    Source: TIFF 6.0, tag 274. The orientation names the corner of the displayed picture in which the stored rows and
    columns begin.
    """
    if transposes(orientation):
        array = array.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        array = array[:, ::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, :, ::-1]
    return np.asarray(array)


def valid_orientation(orientation: Any) -> int:
    """Return a declared orientation, or 1 (no rotation) if it is not an integer from 1 to 8.

    >>> valid_orientation(6), valid_orientation(0), valid_orientation("up")
    (6, 1, 1)
    """
    return orientation if orientation in range(1, 9) else 1


def upright_size(size: Sequence[int], orientation: int) -> tuple[int, ...]:
    """Return the size (H, W) of a picture of stored size `size` (H, W) after `upright`."""
    return tuple(size[::-1]) if transposes(orientation) else tuple(size)


def transposes(orientation: int) -> bool:
    """Whether `upright` exchanges rows and columns for an orientation from 1 to 8."""
    return orientation in (5, 6, 7, 8)
