"""Resampling inside a kernel, as ops.resize means it: a place of the new grid finds the old ones, and the other way.

In 1-D to 3-D, in one form: grids are (D, H, W), and a line or an image has 1 of what it lacks. Along an axis a new
place lies between two old ones, or at one where sizes are equal or interpolation is nearest. Shares are quotients of
integers and so exact whatever the size. Maps are (N, Q, F): one place's channels lie side by side.
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
    """Two grids: sizes, (D, H, W) of the new one and of the old one, and constants of a kernel."""

    sizes: tuple[int | None, ...]
    options: dict[str, Any]


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def between(i, old, new, TAPS: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr):
    """The old place before the new place i, and how far i is towards the next."""
    if WIDE:
        i = i.to(tl.int64)
    if TAPS == 1:
        above = (2 * i + 1) * old
        below = 2 * new
    elif CORNERS:
        above = i * (old - 1)
        below = tl.maximum(new - 1, 1)
    else:
        above = tl.maximum((2 * i + 1) * old - new, 0)
        below = 2 * new
    low = above // below
    fraction = (above - low * below).to(REAL) / below
    return low.to(tl.int32), fraction


@triton.jit
def share(fraction, tap, TAPS: tl.constexpr):
    """What the tap-th of a place's neighbours along an axis counts."""
    if TAPS == 1:
        weight = tl.full(fraction.shape, 1.0, REAL)
    else:
        weight = tl.where(tap == 0, 1 - fraction, fraction)
    return weight


@triton.jit
def resized(
    p, n, f, s, F, D, H, W, OD, OH, OW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    BF: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Channels f at the new places s of a map (N, Q, F) on the old grid: (BF, BS)."""
    d, d_share = between(s // (H * W), OD, D, TD, CORNERS, WIDE)
    h, h_share = between(s // W % H, OH, H, TH, CORNERS, WIDE)
    w, w_share = between(s % W, OW, W, TW, CORNERS, WIDE)
    known = (f < F)[:, None] & (s < D * H * W)[None, :]
    sums = tl.zeros([BF, BS], REAL)
    for j in tl.static_range(TD * TH * TW):
        jd = j // (TH * TW)
        jh = j // TW % TH
        jw = j % TW
        weight = share(d_share, jd, TD) * share(h_share, jh, TH) * share(w_share, jw, TW)
        row = tl.minimum(d + jd, OD - 1) * OH + tl.minimum(h + jh, OH - 1)
        q = row * OW + tl.minimum(w + jw, OW - 1)
        sums += tl.load(p + at(n, f[:, None], q[None, :], F, OD * OH * OW, True), known, 0.0) * weight[None, :]
    return sums


@triton.jit
def first(q, old, new, TAPS: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr):
    """A new place from which on, and not before, new places find the old place q."""
    if WIDE:
        q = q.to(tl.int64)
    if TAPS == 1:
        i = (2 * new * q // old - 1) // 2
    elif CORNERS:
        i = tl.maximum(q - 1, 0) * (new - 1) // tl.maximum(old - 1, 1)
    else:
        i = (tl.maximum(2 * q - 1, 0) * new // old - 1) // 2
    return tl.maximum(i, 0).to(tl.int32)


@triton.jit
def found(i, q, old, new, TAPS: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr):
    """How much of the old place q the new place i takes."""
    low, fraction = between(i, old, new, TAPS, CORNERS, WIDE)
    if TAPS == 1:
        taken = tl.where(low == q, 1.0, 0.0)
    else:
        taken = tl.where(low == q, 1 - fraction, 0.0) + tl.where(tl.minimum(low + 1, old - 1) == q, fraction, 0.0)
    return tl.where(i < new, taken, 0.0)


# ---- around them -----------------------------------------------------------------------------------------------------


def grids(old: Sequence[int], new: Sequence[int], interpolation: str, corners: bool) -> Grids:
    """Of maps with these spatial axes; sizes are None where they are the same, for then nobody asks."""
    if tuple(old) == tuple(new):
        return Grids((None,) * 6, {"TD": 1, "TH": 1, "TW": 1, "CORNERS": False, "WIDE": False})
    old, new = ((1,) * (3 - len(size)) + tuple(size) for size in (old, new))
    taps = [1 if a == b or interpolation == "nearest" else 2 for a, b in zip(old, new, strict=True)]
    wide = any(2 * (a + 1) * (b + 1) >= 1 << 31 for a, b in zip(old, new, strict=True))
    options = dict(zip(("TD", "TH", "TW"), taps, strict=True)) | {"CORNERS": corners, "WIDE": wide}
    return Grids((*new, *old), options)


def reaches(it: Grids) -> tuple[int, ...]:
    """Per axis, among how many new places, from `first` on, all are that find an old one."""
    taps = (it.options[name] for name in ("TD", "TH", "TW"))
    corners = it.options["CORNERS"]
    return tuple(_reach(*sizes, corners) for sizes in zip(it.sizes[3:], it.sizes[:3], taps, strict=True))


@lru_cache
def _reach(old: int, new: int, taps: int, corners: bool) -> int:
    """`between` and `first` in NumPy, over a whole axis."""
    i = np.arange(new)
    if taps == 1:
        low = (2 * i + 1) * old // (2 * new)
        return int((i - np.maximum((2 * new * low // old - 1) // 2, 0)).max()) + 1
    low = i * (old - 1) // max(new - 1, 1) if corners else np.maximum((2 * i + 1) * old - new, 0) // (2 * new)

    def begin(q: NDArray[np.integer]) -> NDArray[np.integer]:
        if corners:
            return np.maximum(q - 1, 0) * (new - 1) // max(old - 1, 1)
        return np.maximum((np.maximum(2 * q - 1, 0) * new // old - 1) // 2, 0)

    return int(max((i - begin(q)).max() for q in (low, np.minimum(low + 1, old - 1)))) + 1
