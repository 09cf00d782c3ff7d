"""SE in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class SE(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.SE`."""

    spec: spec.SE

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        act: str = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(spec.SE(channels, reduction, reduced_channels, bias, gate, act), **kwargs)
        self.squeeze = self.linear("squeeze")
        self.excite = self.linear("excite")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.squeeze.build((None, self.spec.channels))
        self.excite.build((None, self.spec.width))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, 1.., C)."""
        self.check_inputs(x)
        s = ops.avg_pool(x, self.channels_last)    # (N, C)
        h = ops.activate(self.squeeze(s), self.spec.act)    # (N, R)
        z = self.excite(h)                         # (N, C)
        return ops.expand(ops.GATES[self.spec.gate](z), x, self.channels_last)
