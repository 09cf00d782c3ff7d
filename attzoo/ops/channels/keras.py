"""Operations that move, group or repeat channels, in Keras. Tensors are (N, *S, C)."""

from __future__ import annotations

from typing import Any

from ..common.keras import ops, to_last


def channel_shuffle(x: Any, groups: int, channels_last: bool) -> Any:
    """Take the first channel of each group of consecutive channels, then the second of each; the shape is that of x.

    x: (N, *S, C) or (N, C, *S). groups: number of groups, a divisor of C.
    """
    shape, axis = tuple(ops.shape(x)), x.ndim - 1 if channels_last else 1
    grouped = ops.reshape(x, (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :]))
    return ops.reshape(ops.swapaxes(grouped, axis, axis + 1), shape)


def fold_groups(x: Any, groups: int, channels_last: bool) -> Any:
    """Move groups of consecutive channels into the batch, as channels last: x -> (N * groups, *S, C / groups).

    x: (N, *S, C) or (N, C, *S).
    """
    last = to_last(x, channels_last)
    *n, c = ops.shape(last)
    grouped = ops.moveaxis(ops.reshape(last, (*n, groups, c // groups)), -2, 1)
    return ops.reshape(grouped, (-1, *n[1:], c // groups))


def unfold_groups(z: Any, groups: int) -> Any:
    """Move the groups of `fold_groups` back: (N * groups, *S, K) -> (N, *S, groups * K)."""
    _, *n, k = ops.shape(z)
    return ops.reshape(ops.moveaxis(ops.reshape(z, (-1, groups, *n, k)), 1, -2), (-1, *n, groups * k))


def repeat_channels(x: Any, times: int) -> Any:
    """Repeat each channel `times` times in a row: (N, *S, C) -> (N, *S, C * times)."""
    return ops.repeat(x, times, axis=-1)
