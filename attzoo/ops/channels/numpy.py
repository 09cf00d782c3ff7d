"""Operations that move, group or repeat channels, in NumPy. Arrays are (N, C, *S)."""

from __future__ import annotations

import numpy as np

from ...contract import Array


def channel_shuffle(x: Array, groups: int) -> Array:
    """Take the first channel of each group of consecutive channels, then the second of each: (N, C, *S) -> (N, C, *S).

    groups: number of groups, a divisor of C.

    >>> channel_shuffle(np.arange(6).reshape(1, 6, 1), 2).ravel()
    array([0, 3, 1, 4, 2, 5])
    """
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    return grouped.swapaxes(1, 2).reshape(x.shape)


def fold_groups(x: Array, groups: int) -> Array:
    """Move groups of consecutive channels into the batch: (N, C, *S) -> (N * groups, C / groups, *S)."""
    return x.reshape(x.shape[0] * groups, x.shape[1] // groups, *x.shape[2:])


def unfold_groups(z: Array, groups: int) -> Array:
    """Move the groups of `fold_groups` back: (N * groups, K, *S) -> (N, groups * K, *S)."""
    return z.reshape(z.shape[0] // groups, groups * z.shape[1], *z.shape[2:])


def repeat_channels(x: Array, times: int) -> Array:
    """Repeat each channel `times` times in a row: (N, C, *S) -> (N, C * times, *S)."""
    return np.repeat(x, times, axis=1)
