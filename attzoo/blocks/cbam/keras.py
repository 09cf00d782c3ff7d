"""CBAM in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..channel_attention.keras import ChannelAttention
from ..keras import Block
from ..spatial_attention.keras import SpatialAttention
from . import spec


@ops.register
class CBAM(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.CBAM`."""

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
        **kwargs: Any,
    ) -> None:
        super().__init__(
            spec.CBAM(channels, reduction, reduced_channels, bias, gate, kernel_size, norm, spatial_dims), **kwargs
        )
        options = {"data_format": self.data_format, "dtype": self.dtype_policy}
        self.channel = ChannelAttention(channels, reduction, reduced_channels, bias, gate, name="channel", **options)
        self.spatial = SpatialAttention(channels, kernel_size, norm, spatial_dims, name="spatial", **options)

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.channel.build(input_shape)
        self.spatial.build(input_shape)

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients, the product of both parts: (N, *S, C) -> (N, *S, C)."""
        self.check_inputs(x)
        channel = self.channel.attention(x)    # (N, 1.., C)
        spatial = self.spatial.attention(ops.multiply(x, channel), training=training)
        return channel * spatial

    def call(self, x: Any, training: bool | None = None, attention_only: bool = False) -> Any:
        """Return the output for x or, with `attention_only`, the coefficients of `attention`."""
        if attention_only:
            return self.attention(x, training=training)
        self.check_inputs(x)
        x = self.channel(x)
        return self.spatial(x, training=training)
