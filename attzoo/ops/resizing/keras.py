"""Operations that change the number of positions: crop, pad, resample, in Keras. Tensors are (N, *S, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..common.keras import indices, ops, wide


def resize(x: Any, size: Sequence[Any], interpolation: str, align_corners: bool) -> Any:
    """Resample the spatial axes to `size`, one axis after the other: (N, *S, C) -> (N, *size, C).

    interpolation: "linear", "nearest", the mode "nearest-exact" of torch.nn.functional.interpolate, or "floor", its
    mode "nearest". align_corners: as there, for "linear".

    keras.ops.image.resize supports no volumes, computes in float32, and cannot be exported with unknown sizes.
    If the size is static and does not change, x itself is returned.
    """
    if tuple(x.shape[1:-1]) == tuple(size):
        return x
    for axis, new in enumerate(size, start=1):
        old = ops.shape(x)[axis]
        if interpolation == "floor":
            x = ops.take(x, indices(lambda i, old, new: i * old // new, old, new), axis)
        elif interpolation == "nearest":
            x = ops.take(x, nearest(old, new), axis)
        else:
            low, high, fraction = taps(old, new, align_corners, wide(x.dtype))
            fraction = ops.reshape(ops.cast(fraction, x.dtype), (-1, *(1,) * (x.ndim - 1 - axis)))
            x = ops.take(x, low, axis) * (1 - fraction) + ops.take(x, high, axis) * fraction
    return x


def nearest(old: Any, new: Any) -> Any:
    """Return, for each of `new` positions along an axis, the index of the nearest of `old` positions, in integers."""
    return indices(lambda i, old, new: (2 * i + 1) * old // (2 * new), old, new)


def taps(old: Any, new: Any, align_corners: bool, dtype: str) -> tuple[Any, Any, Any]:
    """Return the weights of linear interpolation along an axis from `old` to `new` positions, (new,) each.

    They are the indices of the old position before and after each new position, and the distance from the first, in
    `dtype`. align_corners: as in `resize`.
    """
    i = ops.cast(ops.arange(new, dtype="int32"), dtype)
    old, new = ops.cast(old, dtype), ops.cast(new, dtype)
    source = i * ((old - 1) / ops.maximum(new - 1, 1)) if align_corners else (i + 0.5) * (old / new) - 0.5
    source = ops.clip(source, 0, old - 1)
    low = ops.floor(source)
    return ops.cast(low, "int32"), ops.cast(ops.minimum(low + 1, old - 1), "int32"), source - low
