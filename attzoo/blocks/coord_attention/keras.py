"""Coordinate attention in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class CoordAttention(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.CoordAttention`."""

    spec: spec.CoordAttention

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        spatial_dims: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            spec.CoordAttention(channels, reduction, reduced_channels, bias, gate, spatial_dims), **kwargs
        )
        self.squeeze = self.linear("squeeze")
        self.squeeze_norm = self.batch_norm("squeeze_norm")
        for name in self.spec.axes:
            setattr(self, name, self.linear(name))

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.squeeze.build((None, None, self.spec.channels))
        self.squeeze_norm.build((None, None, self.spec.width))
        for name in self.spec.axes:
            getattr(self, name).build((None, self.spec.width))

    def attention(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Return the coefficients by name of the axis: (N, *S, C) -> (N, 1.., S[i], 1.., C) for each axis i."""
        self.check_inputs(x)
        s = ops.axis_means(x, self.channels_last)                         # (N, sum of S, C)
        u = self.squeeze_norm(self.squeeze(s), training=training)                 # (N, sum of S, R)
        z = ops.split_axes(ops.hard_swish(u), x, self.channels_last)      # (N, 1.., S[i], 1.., R)
        gate = ops.GATES[self.spec.gate]
        return {
            name: ops.from_last(gate(getattr(self, name)(z[i])), self.channels_last)
            for i, name in enumerate(self.spec.axes)
        }
