"""The additive attention gate in Keras 3, for all backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class AttentionGate(Block):
    """(N, *S, C), (N, *G, G) -> (N, *S, C), or channels first by data_format; arguments as `spec.AttentionGate`."""

    spec: spec.AttentionGate

    def __init__(
        self,
        channels: int,
        gating_channels: int,
        inter_channels: int | None = None,
        stride: int | Sequence[int] = 1,
        skip_bias: bool = True,
        norm: bool = False,
        output_transform: bool = False,
        interpolation: str = "linear",
        align_corners: bool = False,
        spatial_dims: int = 2,
        **kwargs: Any,
    ) -> None:
        options = (stride, skip_bias, norm, output_transform, interpolation, align_corners, spatial_dims)
        super().__init__(spec.AttentionGate(channels, gating_channels, inter_channels, *options), **kwargs)
        self.skip, self.gating, self.psi = self.linear("skip"), self.linear("gating"), self.linear("psi")
        self.skip_norm, self.gating_norm = self.batch_norm("skip_norm"), self.batch_norm("gating_norm")
        self.psi_norm = self.batch_norm("psi_norm")
        self.output_ = self.linear("output") if output_transform else self.batch_norm("output")
        self.output_norm = self.batch_norm("output_norm")

    def build(self, x_shape: Any, g_shape: Any = None) -> None:
        """Create the variables of the layers."""
        c, width, unknown = self.spec.channels, self.spec.width, (None,) * (self.spec.spatial_dims + 1)
        self.skip.build((*unknown, c))
        self.gating.build((*unknown, self.spec.gating_channels))
        self.psi.build((*unknown, width))
        self.skip_norm.build((*unknown, width))
        self.gating_norm.build((*unknown, width))
        self.psi_norm.build((*unknown, 1))
        self.output_.build((*unknown, c))
        self.output_norm.build((*unknown, c))

    def attention(self, x: Any, g: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C), (N, *G, G) -> (N, *S, 1)."""
        self.check_inputs(x, g)
        x, g = ops.to_last(x, self.channels_last), ops.to_last(g, self.channels_last)
        resampling = self.spec.interpolation, self.spec.align_corners
        skip = self.skip_norm(self.skip(x), training=training)
        gating = self.gating_norm(self.gating(g), training=training)
        h = ops.relu(skip + ops.resize(gating, ops.sizes(skip), *resampling))
        logits = self.psi_norm(self.psi(h), training=training)
        return ops.from_last(ops.resize(ops.sigmoid(logits), ops.sizes(x), *resampling), self.channels_last)

    def call(   # type: ignore[override]
        self, x: Any, g: Any, training: bool | None = None, attention_only: bool = False
    ) -> Any:
        """Return the output for x and g or, with `attention_only`, the coefficients of `attention`."""
        coefficients = self.attention(x, g, training=training)
        if attention_only:
            return coefficients
        y = self.spec.combine(x, coefficients, ops)
        if not self.spec.output_transform:
            return y   # without two transposes of a channels-first y
        y = self.output_norm(self.output_(ops.to_last(y, self.channels_last)), training=training)
        return ops.from_last(y, self.channels_last)
