"""EMA in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class EMAAttention(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.EMAAttention`."""

    spec: spec.EMAAttention

    def __init__(self, channels: int, groups: int = 32, spatial_dims: int = 2, **kwargs: Any) -> None:
        super().__init__(spec.EMAAttention(channels, groups, spatial_dims), **kwargs)
        self.pointwise = self.linear("pointwise")
        self.norm = self.group_norm("norm", self.spec.width)
        self.conv = self.conv_same("conv")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.pointwise.build((None, None, self.spec.width))
        self.norm.build((None, self.spec.width))
        self.conv.build(None)

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients, which are equal in all channels of a group: (N, *S, C) -> (N, *S, C)."""
        self.check_inputs(x)
        g = ops.fold_groups(x, self.spec.groups, self.channels_last)                          # (N G, *S, D)
        p = ops.split_axes(self.pointwise(ops.axis_means(g, channels_last=True)), g, True)    # (N G, 1.., S[i], 1.., D)
        u = g
        for part in p:
            u = u * ops.sigmoid(part)
        u = self.norm(u)                                                                      # (N G, *S, D)
        v = self.conv(g)                                                                      # (N G, *S, D)
        q = ops.weighted_sum(v, ops.channel_softmax(ops.avg_pool(u, channels_last=True)))     # (N G, *S, 1)
        q = q + ops.weighted_sum(u, ops.channel_softmax(ops.avg_pool(v, channels_last=True)))
        a = ops.repeat_channels(ops.unfold_groups(ops.sigmoid(q), self.spec.groups), self.spec.width)
        return ops.from_last(a, self.channels_last)
