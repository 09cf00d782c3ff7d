"""Spatial attention in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ops import fused
from ...ops import torch as ops
from ...ops import torch_cpu as cpu
from . import spec


class SpatialAttention(ops.Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.SpatialAttention`."""

    spec: spec.SpatialAttention

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        norm: bool = False,
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(it := spec.SpatialAttention(channels, kernel_size, norm, spatial_dims))
        made = ops.factory(device, dtype)
        self.conv = ops.CONV[it.spatial_dims](2, 1, it.kernel_size, padding=it.kernel_size // 2, bias=False, **made)
        self.norm = ops.BATCH_NORM[it.spatial_dims](1, **made) if it.norm else nn.Identity()
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (N, 1, *S)."""
        self.accept(x)
        return self.coefficients(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1))

    def coefficients(self, maps: Tensor) -> Tensor:
        """Average and maximum over channels, (N, 2, *S) -> (N, 1, *S)."""
        q = self.conv(maps)    # (N, 1, *S)
        return ops.sigmoid(ops.normalise(self.norm, q))

    def forward(self, x: Tensor) -> Tensor:
        self.accept(x)
        if fused.serves(self, SpatialAttention, x):
            from . import triton
            return triton.fused(self, x)
        if cpu.serves(x, self, SpatialAttention):
            return cpu.scale(x, None, self.coefficients)
        return super().forward(x)
