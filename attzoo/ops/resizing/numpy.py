"""Operations that change the number of positions: crop, pad, resample, in NumPy. Arrays are (N, C, *S)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...contract import Array


def crop(x: Array, size: Sequence[int]) -> Array:
    """Return the first `size` pixels along each spatial axis: (N, C, *S) -> (N, C, *size)."""
    return x[(slice(None), slice(None), *map(slice, size))]


def widen(x: Array, min_size: Sequence[int]) -> Array:
    """Pad each spatial axis to `min_size` by repeating the last pixel: (N, C, *S) -> (N, C, *max(S, min_size))."""
    missing = [(0, max(0, low - n)) for n, low in zip(x.shape[2:], min_size, strict=True)]
    return np.pad(x, [(0, 0), (0, 0), *missing], mode="edge") if any(map(max, missing)) else x


def resize(x: Array, size: Sequence[int], interpolation: str, align_corners: bool) -> Array:
    """Resample the spatial axes to `size`, one axis after the other: (N, C, *S) -> (N, C, *size).

    interpolation: "linear", the mode linear, bilinear or trilinear of torch.nn.functional.interpolate, "nearest", its
    mode "nearest-exact", or "floor", its mode "nearest". align_corners: as there, for "linear". If the size does not
    change, x itself is returned.
    """
    if x.shape[2:] == tuple(size):
        return x
    for axis, new in enumerate(size, start=2):
        old = x.shape[axis]
        if interpolation == "floor":
            x = x.take(np.arange(new) * old // new, axis)
        elif interpolation == "nearest":
            x = x.take(nearest(old, new), axis)
        else:
            low, high, fraction = taps(old, new, align_corners)
            fraction = fraction.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis))
            x = x.take(low, axis) * (1 - fraction) + x.take(high, axis) * fraction
    return x


def nearest(old: int, new: int) -> NDArray[np.integer]:
    """Return, for each of `new` positions along an axis, the index of the nearest of `old` positions.

    >>> nearest(2, 5)
    array([0, 0, 1, 1, 1])
    """
    return (2 * np.arange(new) + 1) * old // (2 * new)


def taps(old: int, new: int, align_corners: bool) -> tuple[NDArray[np.integer], NDArray[np.integer], Array]:
    """Return the weights of linear interpolation along an axis from `old` to `new` positions, (new,) each.

    They are the indices of the old position before and after each new position, and the distance from the first.
    align_corners: as in `resize`.

    >>> taps(2, 4, align_corners=False)
    (array([0, 0, 0, 1]), array([1, 1, 1, 1]), array([0.  , 0.25, 0.75, 0.  ]))
    """
    i = np.arange(new)
    source = i * ((old - 1) / max(new - 1, 1)) if align_corners else (i + 0.5) * (old / new) - 0.5
    source = np.clip(source, 0, old - 1)
    low = np.floor(source).astype(int)
    return low, np.minimum(low + 1, old - 1), source - low
