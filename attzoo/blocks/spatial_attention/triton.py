"""Spatial attention in Triton: x is read twice and y written once, in place of three reads; torch.py says what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops.fused import Fused, densely
from ...ops.triton import passes, spatial
from ...ops.triton.common import alike
from ...ops.triton.passes import Map
from ...ops.triton.spatial import Filter, Kept


def outputs(x: Tensor, *it: Any) -> Sequence[Any]:
    """y and what is kept."""
    return torch.empty_like(x), *spatial.kept(x, Filter(*it))


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Pool over channels, filter, scale."""
    x, *it = args
    y, *kept = to
    passes.pool_channels(x, None, kept[0])
    norm = spatial.forward(x.shape[2:], Filter(*it), Kept(*kept))
    passes.scale(x, None, kept[1], y, norm=norm)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, kept: Sequence[Tensor], gradients: list[Any]
) -> None:
    """dy * x, added up, is the gradient of t; what that makes of average and maximum is added to dy * t."""
    x, *it = args
    dx, *learned = gradients
    dy, saved = alike(dy, x), Kept(*kept)
    dmaps = spatial.backward(x, dy, None, Filter(*it), saved, learned)
    passes.to_input(x, dy, dx, None, None, of_map=Map(saved.t, saved.maps, dmaps))


KERNELS = Fused(
    "spatial_attention", f"Tensor x, Tensor weight, {spatial.NORM}", 4, outputs, forward, backward, inputs=1, fixed=2
)


def fused(block: Any, x: Tensor) -> Tensor:
    """(N, C, *S) -> (N, C, *S)."""
    it = spatial.filter_of(block)
    y, *kept = KERNELS(block, densely(x), *it)
    spatial.follow(block, it, Kept(*kept))
    return y
