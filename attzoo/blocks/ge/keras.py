"""GE in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class GE(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.GE`."""

    spec: spec.GE

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        extent: int = 8,
        learned: bool = True,
        mlp: bool = True,
        spatial_dims: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            args := spec.GE(channels, reduction, reduced_channels, extent, learned, mlp, spatial_dims), **kwargs
        )
        for i in args.steps:
            setattr(self, f"conv{i}", self.conv_same(f"conv{i}"))
            setattr(self, f"norm{i}", self.batch_norm(f"norm{i}"))
        if args.mlp:
            self.squeeze, self.excite = self.linear("squeeze"), self.linear("excite")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        shape = (None, self.spec.channels)
        for i in self.spec.steps:
            getattr(self, f"conv{i}").build(None)
            getattr(self, f"norm{i}").build(shape)
        if self.spec.mlp:
            self.squeeze.build(shape)
            self.excite.build((None, self.spec.width))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, *S, C), or (N, 1.., C) if the extent is 0."""
        self.check_inputs(x)
        p = x = ops.to_last(x, self.channels_last)
        if self.spec.extent == 0:
            p = ops.expand(ops.avg_pool(x, channels_last=True), x, channels_last=True)   # (N, 1.., C)
        elif not self.spec.learned:
            p = ops.strided_avg_pool(x, self.spec.extent)                                # (N, *L, C)
        every_second = (slice(None), *(slice(None, None, 2),) * self.spec.spatial_dims)
        for i in self.spec.steps:
            p = ops.relu(p) if i > 1 else p
            p = getattr(self, f"conv{i}")(p)[every_second]   # TensorFlow pads convolutions with a stride otherwise
            p = getattr(self, f"norm{i}")(p, training=training)
        if self.spec.mlp:
            h = ops.relu(self.squeeze(p))    # (N, *L, R)
            p = self.excite(h)
        a = ops.sigmoid(p)
        return ops.from_last(ops.resize(a, ops.sizes(x), "floor", False) if self.spec.extent else a, self.channels_last)
