"""SimAM in Keras 3, on whichever backend Keras runs."""

from __future__ import annotations

from typing import Any

from attzoo.blocks.keras import Block
from attzoo.ops import keras as ops
from attzoo.ops.keras import keras

from . import spec


@keras.saving.register_keras_serializable(package="attzoo_simam")
class SimAM(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.SimAM`."""

    spec: spec.SimAM

    def __init__(self, channels: int, smoothing: float = 0.1, **kwargs: Any) -> None:
        super().__init__(spec.SimAM(channels, smoothing), **kwargs)

    def build(self, input_shape: Any) -> None:
        """Create nothing."""

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """(N, *S, C) -> (N, *S, C)."""
        self.check_inputs(x)
        squared_deviations = (x - ops.expand(ops.avg_pool(x, self.channels_last), x, self.channels_last)) ** 2
        variance = ops.expand(ops.avg_pool(squared_deviations, self.channels_last), x, self.channels_last)
        return ops.sigmoid(squared_deviations / (4 * (variance + self.spec.smoothing)) + 0.5)
