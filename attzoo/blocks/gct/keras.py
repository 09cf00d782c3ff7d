"""GCT in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class GCT(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.GCT`."""

    spec: spec.GCT

    def __init__(self, channels: int, mode: str = "l2", epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(spec.GCT(channels, mode, epsilon), **kwargs)

    def build(self, input_shape: Any) -> None:
        """Create the variables."""
        for name, weight in self.spec.weights.items():
            setattr(self, name, self.add_weight(name=name, shape=weight.shape, initializer=ops.initialize(weight)))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, 1.., C)."""
        self.check_inputs(x)
        order, epsilon = self.spec.order, self.spec.epsilon
        norm = ops.spatial_norm(x, order, epsilon, self.channels_last)      # (N, C), float32 if x is half precision
        weights = self.embedding_weight, self.gating_weight, self.gating_bias
        embedding, gating, bias = (ops.in_dtype_of(norm, weight) for weight in weights)
        n = ops.over_channel_norm(embedding * norm, order, epsilon)         # (N, C)
        return ops.expand(ops.in_dtype_of(x, 1 + ops.tanh(gating * n + bias)), x, self.channels_last)
