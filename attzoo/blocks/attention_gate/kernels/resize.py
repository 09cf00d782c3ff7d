"""Resampling inside a kernel, as `ops.resize` does it, and its adjoint.

Positions of the target grid are interpolated from positions of the source grid. Grids of 1 to 3 dimensions are
(D, H, W), with leading sizes of 1. Along an axis a target position has two taps (source positions), or one if the sizes
are equal or the interpolation is "nearest". Weights are quotients of integers, and so accurate for every size.
Maps are (N, Q, F), with the channels of a position next to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from ....fast.triton.common import REAL, at


class Grids(NamedTuple):
    """A target and a source grid: their sizes, (D, H, W) each (None if the grids are equal), and kernel constants.

    Constants are the taps per axis (TD, TH, TW), CORNERS for `align_corners`, and WIDE for 64-bit arithmetic.
    """

    sizes: tuple[int | None, ...]
    options: dict[str, Any]

    @property
    def are_equal(self) -> bool:
        """Whether source and target grid are equal, so that nothing is resampled."""
        return self.sizes[0] is None


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def source_position(
    target_index, source_size, target_size, TAPS: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr
):   # fmt: skip
    """Return the first source position that a target position reads, and the weight of the second one, along an axis.

    TAPS: number of source positions that are read, 1 or 2. CORNERS, WIDE: see
    `Grids`.
    """
    if WIDE:
        target_index = target_index.to(tl.int64)
    if TAPS == 1:
        numerator = (2 * target_index + 1) * source_size
        denominator = 2 * target_size
    elif CORNERS:
        numerator = target_index * (source_size - 1)
        denominator = tl.maximum(target_size - 1, 1)
    else:
        numerator = tl.maximum((2 * target_index + 1) * source_size - target_size, 0)
        denominator = 2 * target_size
    low = numerator // denominator
    fraction = (numerator - low * denominator).to(REAL) / denominator
    return low.to(tl.int32), fraction


@triton.jit
def tap_weight(fraction, tap, TAPS: tl.constexpr):
    """Return the weight of tap 0 or 1 along an axis with TAPS taps, where `fraction` is the weight of tap 1."""
    if TAPS == 1:
        weight = tl.full(fraction.shape, 1.0, REAL)
    else:
        weight = tl.where(tap == 0, 1 - fraction, fraction)
    return weight


@triton.jit
def resized(
    source_map, n, f, s, F, D, H, W, OD, OH, OW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    BF: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Return `source_map`, (N, Q, F), resampled to target positions s, at sample n and inner channels f: (BF, BS).

    (OD, OH, OW) is the size of the map's grid, (D, H, W) that of the target grid. TD, TH, TW, CORNERS, WIDE: see
    `Grids`.
    """
    d, d_fraction = source_position(s // (H * W), OD, D, TD, CORNERS, WIDE)
    h, h_fraction = source_position(s // W % H, OH, H, TH, CORNERS, WIDE)
    w, w_fraction = source_position(s % W, OW, W, TW, CORNERS, WIDE)
    inside = (f < F)[:, None] & (s < D * H * W)[None, :]
    sums = tl.zeros([BF, BS], REAL)
    for tap in tl.static_range(TD * TH * TW):
        tap_d = tap // (TH * TW)
        tap_h = tap // TW % TH
        tap_w = tap % TW
        weight = tap_weight(d_fraction, tap_d, TD) * tap_weight(h_fraction, tap_h, TH)
        weight *= tap_weight(w_fraction, tap_w, TW)
        row = tl.minimum(d + tap_d, OD - 1) * OH + tl.minimum(h + tap_h, OH - 1)
        source_index = row * OW + tl.minimum(w + tap_w, OW - 1)
        address = source_map + at(n, f[:, None], source_index[None, :], F, OD * OH * OW, True)
        sums += tl.load(address, inside, 0.0) * weight[None, :]
    return sums


@triton.jit
def first_target(source_index, source_size, target_size, TAPS: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr):
    """Return a target position before which no target position reads source position `source_index`.

    TAPS, CORNERS and WIDE are those of `source_position`.
    """
    if WIDE:
        source_index = source_index.to(tl.int64)
    if TAPS == 1:
        target_index = (2 * target_size * source_index // source_size - 1) // 2
    elif CORNERS:
        target_index = tl.maximum(source_index - 1, 0) * (target_size - 1) // tl.maximum(source_size - 1, 1)
    else:
        target_index = (tl.maximum(2 * source_index - 1, 0) * target_size // source_size - 1) // 2
    return tl.maximum(target_index, 0).to(tl.int32)


@triton.jit
def source_weight(
    target_index, source_index, source_size, target_size,
    TAPS: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
):   # fmt: skip
    """Return the weight of a source position in the value at a target position, along an axis; 0 beyond the target.

    TAPS, CORNERS and WIDE are those of `source_position`.
    """
    low, fraction = source_position(target_index, source_size, target_size, TAPS, CORNERS, WIDE)
    if TAPS == 1:
        weight = tl.where(low == source_index, 1.0, 0.0)
    else:
        high = tl.minimum(low + 1, source_size - 1)
        weight = tl.where(low == source_index, 1 - fraction, 0.0) + tl.where(high == source_index, fraction, 0.0)
    return tl.where(target_index < target_size, weight, 0.0)


# ---- launching -------------------------------------------------------------------------------------------------------


def grids(source: Sequence[int], target: Sequence[int], interpolation: str, corners: bool) -> Grids:
    """Return the grids for resampling maps of spatial size `source` to the size `target`.

    interpolation: "linear" or "nearest". corners: whether linear interpolation aligns corners.
    """
    if tuple(source) == tuple(target):
        return Grids((None,) * 6, {"TD": 1, "TH": 1, "TW": 1, "CORNERS": False, "WIDE": False})
    source, target = ((1,) * (3 - len(size)) + tuple(size) for size in (source, target))
    taps = [1 if a == b or interpolation == "nearest" else 2 for a, b in zip(source, target, strict=True)]
    needs_int64 = any(2 * (a + 1) * (b + 1) >= 1 << 31 for a, b in zip(source, target, strict=True))
    options = dict(zip(("TD", "TH", "TW"), taps, strict=True)) | {"CORNERS": corners, "WIDE": needs_int64}
    return Grids((*target, *source), options)


def target_counts(grids: Grids) -> tuple[int, ...]:
    """Return, per axis, how many target positions from `first_target` on include all that read one source position."""
    taps = (grids.options[name] for name in ("TD", "TH", "TW"))
    corners = grids.options["CORNERS"]
    return tuple(_target_count(*sizes, corners) for sizes in zip(grids.sizes[3:], grids.sizes[:3], taps, strict=True))


@lru_cache
def _target_count(source_size: int, target_size: int, taps: int, corners: bool) -> int:
    """Return the count of `target_counts` for one axis, from its sizes and taps. corners: whether corners are aligned.

    It computes `source_position` and `first_target` in NumPy for the whole axis.
    """
    target_indices = np.arange(target_size)
    if taps == 1:
        low = (2 * target_indices + 1) * source_size // (2 * target_size)
        return int((target_indices - np.maximum((2 * target_size * low // source_size - 1) // 2, 0)).max()) + 1
    if corners:
        low = target_indices * (source_size - 1) // max(target_size - 1, 1)
    else:
        low = np.maximum((2 * target_indices + 1) * source_size - target_size, 0) // (2 * target_size)

    def first_target_index(source_index: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return `first_target` of source positions, in NumPy."""
        if corners:
            return np.maximum(source_index - 1, 0) * (target_size - 1) // max(source_size - 1, 1)
        return np.maximum((np.maximum(2 * source_index - 1, 0) * target_size // source_size - 1) // 2, 0)

    source_indices = low, np.minimum(low + 1, source_size - 1)
    return int(max((target_indices - first_target_index(indices)).max() for indices in source_indices)) + 1
