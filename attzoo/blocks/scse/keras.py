"""scSE in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class SCSE(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.SCSE`."""

    spec: spec.SCSE

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        combination: str = "max_of_products",
        **kwargs: Any,
    ) -> None:
        super().__init__(spec.SCSE(channels, reduction, reduced_channels, bias, gate, combination), **kwargs)
        self.squeeze = self.linear("squeeze")
        self.excite = self.linear("excite")
        self.position = self.linear("position")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.squeeze.build((None, self.spec.channels))
        self.excite.build((None, self.spec.width))
        self.position.build((None, self.spec.channels))

    def attention(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Return the coefficients: (N, *S, C) -> channel (N, 1.., C), position (N, *S, 1)."""
        self.check_inputs(x)
        gate = ops.GATES[self.spec.gate]
        s = ops.avg_pool(x, self.channels_last)                  # (N, C)
        h = ops.relu(self.squeeze(s))                            # (N, R)
        z = self.excite(h)                                       # (N, C)
        q = self.position(ops.to_last(x, self.channels_last))    # (N, *S, 1)
        channel = ops.expand(gate(z), x, self.channels_last)
        return {"channel": channel, "position": ops.from_last(gate(q), self.channels_last)}
