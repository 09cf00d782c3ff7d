"""Triplet attention in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class TripletAttention(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.TripletAttention`."""

    spec: spec.TripletAttention

    def __init__(
        self, channels: int, kernel_size: int = 7, no_spatial: bool = False, spatial_dims: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(spec.TripletAttention(channels, kernel_size, no_spatial, spatial_dims), **kwargs)
        for name in self.spec.maps:
            setattr(self, f"{name}_conv", self.conv_same(f"{name}_conv"))
            setattr(self, f"{name}_norm", self.batch_norm(f"{name}_norm"))

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        for name in self.spec.maps:
            getattr(self, f"{name}_conv").build(None)
            getattr(self, f"{name}_norm").build((None, 1))

    def attention(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Return the coefficients: (N, *S, C) -> by name of the map, (N, *S, C) with size 1 along the pooled axis."""
        self.check_inputs(x)
        coefficients = {}
        for name, axis in self.spec.maps.items():
            m = ops.mean_and_max(x, axis, self.channels_last)          # (N, *map, 2)
            q = getattr(self, f"{name}_conv")(m)                       # (N, *map, 1)
            z = getattr(self, f"{name}_norm")(q, training=training)
            coefficients[name] = ops.from_map(ops.sigmoid(z), axis, self.channels_last)
        return coefficients
