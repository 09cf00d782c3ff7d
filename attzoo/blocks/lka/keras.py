"""LKA and LSKA in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class LKA(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.LKA`."""

    spec: spec.LKA

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        separable: bool = False,
        spatial_dims: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec.LKA(channels, kernel_size, separable, spatial_dims), **kwargs)
        for name, dilation in self.spec.dilations.items():
            setattr(self, name, self.conv_same(name, dilation=dilation))
        self.mix = self.linear("mix")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        for name in self.spec.dilations:
            getattr(self, name).build(None)
        self.mix.build((None, self.spec.channels))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, *S, C)."""
        self.check_inputs(x)
        h = ops.to_last(x, self.channels_last)
        for name in self.spec.dilations:
            h = getattr(self, name)(h)
        return ops.from_last(self.mix(h), self.channels_last)
