"""Operations that change the number of positions: crop, pad, resample, in PyTorch. Tensors are (N, C, *S)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import guard
from ..common.torch import in_dtype_of


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the first `size` pixels along each spatial axis: (N, C, *S) -> (N, C, *size)."""
    if not guard.is_exporting():
        return x[(slice(None), slice(None), *map(slice, size))]
    for axis, new in enumerate(size, start=2):   # a slice would add a guard on the sizes
        x = x.index_select(axis, torch.arange(new, device=x.device))
    return x


def widen(x: Tensor, min_size: Sequence[int]) -> Tensor:
    """Pad each spatial axis to `min_size` by repeating the last pixel: (N, C, *S) -> (N, C, *max(S, min_size))."""
    for axis, low in enumerate(min_size, start=2):
        if low > 1 and x.shape[axis] < low:
            x = x.index_select(axis, torch.arange(low, device=x.device).clamp(max=x.shape[axis] - 1))
    return x


def interpolate(x: Tensor, **options: Any) -> Tensor:
    """Return F.interpolate(x, **options) in the dtype of x. Under autocast on CUDA, F.interpolate returns float32."""
    return in_dtype_of(x, F.interpolate(x, **options))


def repeat(x: Tensor, times: Sequence[int]) -> Tensor:
    """Repeat every pixel `times` times along each spatial axis: (N, C, *S) -> (N, C, *(S * times))."""
    return interpolate(x, scale_factor=tuple(map(float, times)))


def upsample(x: Tensor, times: Sequence[int]) -> Tensor:
    """Upsample linearly by the factors `times`: (N, C, *S) -> (N, C, *(S * times))."""
    return resize(x, [n * step for n, step in zip(x.shape[2:], times, strict=True)], "linear", align_corners=False)


def resize(x: Tensor, size: Sequence[int], interpolation: str, align_corners: bool) -> Tensor:
    """Resample the spatial axes to `size`: (N, C, *S) -> (N, C, *size).

    interpolation: "linear", "nearest", the mode "nearest-exact" of F.interpolate, or "floor", its mode "nearest".
    align_corners: as there, for "linear".

    Resampling to the same size is skipped, except in an exported or traced graph, which may be run at other sizes.
    Gradients are deterministic on CUDA, except 3-D linear with torch 2.6. The 1-D linear form uses the 2-D one,
    because torch's 1-D form has no deterministic gradient.
    """
    is_traced = guard.is_exporting() or torch.jit.is_tracing()   # type: ignore[attr-defined]
    if not is_traced and x.shape[2:] == size:   # last: it would restrict a graph to these sizes
        return x
    if interpolation != "linear":
        for axis, new in enumerate(size, start=2):
            i = torch.arange(new, device=x.device)
            double = 2 * i if interpolation == "floor" else 2 * i + 1   # of the position, in units of its pixels
            x = x.index_select(axis, double * x.shape[axis] // (2 * new))
        return x
    if x.ndim == 3:
        return interpolate(x[:, :, None], size=(1, *size), mode="bilinear", align_corners=align_corners)[:, :, 0]
    return interpolate(x, size=size, mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=align_corners)
