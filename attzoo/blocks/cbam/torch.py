"""CBAM in PyTorch."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ...fast import cpu
from ...ops import torch as ops
from ..channel_attention.torch import ChannelAttention
from ..spatial_attention.torch import SpatialAttention
from ..torch import Block
from . import spec


class CBAM(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.CBAM`."""

    spec: spec.CBAM
    parts: ClassVar = {"channel": ChannelAttention, "spatial": SpatialAttention}
    cpu_form = cpu.BOTH

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
        factory_options = ops.factory_options(device, dtype)
        self.channel = ChannelAttention(channels, reduction, reduced_channels, bias, gate, **factory_options)
        self.spatial = SpatialAttention(channels, kernel_size, norm, spatial_dims, **factory_options)

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients, the product of both parts: (N, C, *S) -> (N, C, *S)."""
        self.check_inputs(x)
        channel = self.channel.attention(x)    # (N, C, 1..)
        spatial = self.spatial.attention(x * channel)
        return channel * spatial

    def plain(self, x: Tensor) -> Tensor:   # type: ignore[override]
        """Return x' * (spatial attention of x'), where x' = x * (channel attention of x): (N, C, *S) -> (N, C, *S)."""
        return self.spatial(self.channel(x))

    @staticmethod
    def triton_form() -> Any:
        """Return the module of the fused kernels."""
        from . import triton
        return triton
