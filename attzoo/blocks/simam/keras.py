"""SimAM in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class SimAM(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.SimAM`."""

    spec: spec.SimAM

    def __init__(self, channels: int, e_lambda: float = 1e-4, unbiased: bool = True, **kwargs: Any) -> None:
        super().__init__(spec.SimAM(channels, e_lambda, unbiased), **kwargs)

    def build(self, input_shape: Any) -> None:
        """Create no variables: the block has no weights."""

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, *S, C)."""
        self.check_inputs(x)
        r = ops.relative_deviation(x, self.spec.e_lambda, self.spec.unbiased, self.channels_last)    # (N, *S, C)
        return ops.sigmoid(r / 4 + 0.5)
