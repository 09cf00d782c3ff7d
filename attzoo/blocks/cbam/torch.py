"""CBAM in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import fused
from ...ops import torch as ops
from ...ops import torch_cpu as cpu
from ..channel_attention.torch import ChannelAttention
from ..spatial_attention.torch import SpatialAttention
from . import spec


class CBAM(ops.Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.CBAM`; a call may end as `ops.finish` does."""

    spec: spec.CBAM

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        kernel_size: int = 7,
        norm: bool = False,
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            spec.CBAM(channels, reduction, reduced_channels, bias, gate, kernel_size, norm, spatial_dims)
        )
        made = ops.factory(device, dtype)
        self.channel = ChannelAttention(channels, reduction, reduced_channels, bias, gate, **made)
        self.spatial = SpatialAttention(channels, kernel_size, norm, spatial_dims, **made)

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, *S)."""
        self.accept(x)
        channel = self.channel.attention(x)    # (N, C, 1..)
        spatial = self.spatial.attention(x * channel)
        return channel * spatial

    def forward(self, x: Tensor, shortcut: Tensor | None = None, act: str | None = None) -> Tensor:
        self.accept_residual(x, shortcut, act)
        parts = (self.channel, ChannelAttention), (self.spatial, SpatialAttention)
        if fused.serves(self, CBAM, x, shortcut, parts=parts):
            from . import triton
            return triton.fused(self, x, shortcut, act)
        if cpu.serves(x, self, CBAM, *parts):
            return ops.finish_(cpu.scale(x, self.channel.coefficients, self.spatial.coefficients), shortcut, act)
        x = self.channel(x)
        return ops.finish(self.spatial(x), shortcut, act)   # a call, whose hooks may have kept what it gave
