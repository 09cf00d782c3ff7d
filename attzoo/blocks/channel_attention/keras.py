"""Channel attention in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class ChannelAttention(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.ChannelAttention`."""

    spec: spec.ChannelAttention

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        **kwargs: Any,
    ) -> None:
        super().__init__(spec.ChannelAttention(channels, reduction, reduced_channels, bias, gate), **kwargs)
        self.squeeze = self.linear("squeeze")
        self.excite = self.linear("excite")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.squeeze.build((None, self.spec.channels))
        self.excite.build((None, self.spec.width))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, 1.., C)."""
        self.check_inputs(x)
        s = self.coefficients(ops.avg_pool(x, self.channels_last), ops.max_pool(x, self.channels_last))    # (N, C)
        return ops.expand(s, x, self.channels_last)

    def coefficients(self, avg: Any, maximum: Any) -> Any:
        """Return the coefficients (N, C) from average and maximum over space, (N, C) each."""
        z = self.mlp(avg) + self.mlp(maximum)    # (N, C)
        return ops.GATES[self.spec.gate](z)

    def mlp(self, s: Any) -> Any:
        """Apply the two-layer perceptron: (N, C) -> (N, C)."""
        h = ops.relu(self.squeeze(s))    # (N, R)
        return self.excite(h)
