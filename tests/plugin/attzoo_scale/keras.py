"""Scale in Keras 3, on whichever backend Keras runs."""

from __future__ import annotations

from typing import Any

from attzoo.blocks.keras import Block
from attzoo.ops import keras as ops

from . import spec


@ops.keras.saving.register_keras_serializable(package="attzoo_scale")
class Scale(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.Scale`."""

    spec: spec.Scale

    def __init__(self, channels: int, start: float = 0.0, **kwargs: Any) -> None:
        super().__init__(spec.Scale(channels, start), **kwargs)

    def build(self, input_shape: Any) -> None:
        weight = self.spec.weights["logit"]
        self.logit = self.add_weight(name="logit", shape=weight.shape, initializer=ops.initialize(weight))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """(N, *S, C) -> (1, 1.., C)."""
        self.check_inputs(x)
        logit = ops.keras.ops.cast(self.logit, self.compute_dtype)
        return ops.expand(ops.sigmoid(logit)[None], x, self.channels_last)
