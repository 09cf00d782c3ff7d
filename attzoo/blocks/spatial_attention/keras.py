"""Spatial attention in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class SpatialAttention(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.SpatialAttention`."""

    spec: spec.SpatialAttention

    def __init__(
        self, channels: int, kernel_size: int = 7, norm: bool = False, spatial_dims: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(spec.SpatialAttention(channels, kernel_size, norm, spatial_dims), **kwargs)
        self.conv = self.conv_same("conv")
        self.norm = self.batch_norm("norm")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.conv.build(None)
        self.norm.build((None, 1))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, *S, 1)."""
        self.check_inputs(x)
        pools = ops.mean_and_max(x, 1, self.channels_last)    # (N, *S, 2)
        return ops.from_last(self.coefficients(pools, training), self.channels_last)

    def coefficients(self, maps: Any, training: bool | None = None) -> Any:
        """Return the coefficients (N, *S, 1) from average and maximum over channels, (N, *S, 2)."""
        logits = self.conv(maps)    # (N, *S, 1)
        return ops.sigmoid(self.norm(logits, training=training))
