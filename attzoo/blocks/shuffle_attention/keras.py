"""Shuffle attention in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class ShuffleAttention(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.ShuffleAttention`."""

    spec: spec.ShuffleAttention

    def __init__(self, channels: int, groups: int = 64, **kwargs: Any) -> None:
        super().__init__(spec.ShuffleAttention(channels, groups), **kwargs)
        self.norm = self.group_norm("norm", self.spec.width)

    def build(self, input_shape: Any) -> None:
        """Create the variables of the block and of its norm."""
        for name in ("channel_weight", "channel_bias", "position_weight", "position_bias"):
            weight = self.spec.weights[name]
            setattr(self, name, self.add_weight(name=name, shape=weight.shape, initializer=ops.initialize(weight)))
        self.norm.build((None, self.spec.width))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients, in the order of the channels of x: (N, *S, C) -> (N, *S, C)."""
        self.check_inputs(x)
        g = ops.fold_groups(x, self.spec.groups, self.channels_last)         # (N G, *S, 2 D)
        x0, x1 = g[..., : self.spec.width], g[..., self.spec.width :]        # (N G, *S, D) each
        s = ops.avg_pool(x0, channels_last=True)                             # (N G, D)
        a0 = ops.sigmoid(s * ops.in_dtype_of(s, self.channel_weight) + ops.in_dtype_of(s, self.channel_bias))
        q = self.norm(x1)                                                    # (N G, *S, D)
        a1 = ops.sigmoid(q * ops.in_dtype_of(q, self.position_weight) + ops.in_dtype_of(q, self.position_bias))
        halves = ops.expand(a0, x0, channels_last=True) + ops.zeros_like(a1), a1
        a = ops.unfold_groups(ops.concatenate(halves, axis=-1), self.spec.groups)
        return ops.from_last(a, self.channels_last)

    def call(self, x: Any, training: bool | None = None, attention_only: bool = False) -> Any:
        """Return the output for x or, with `attention_only`, the coefficients of `attention`."""
        a = self.attention(x, training=training)
        return a if attention_only else ops.channel_shuffle(ops.multiply(x, a), 2, self.channels_last)
