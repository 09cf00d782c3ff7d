"""eSE in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class ESE(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.ESE`."""

    spec: spec.ESE

    def __init__(self, channels: int, bias: bool = True, gate: str = "hard_sigmoid", **kwargs: Any) -> None:
        super().__init__(spec.ESE(channels, bias, gate), **kwargs)
        self.excite = self.linear("excite")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.excite.build((None, self.spec.channels))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, 1.., C)."""
        self.check_inputs(x)
        s = ops.avg_pool(x, self.channels_last)    # (N, C)
        z = self.excite(s)                         # (N, C)
        return ops.expand(ops.GATES[self.spec.gate](z), x, self.channels_last)
