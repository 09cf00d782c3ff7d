"""Centered in Keras 3, on whichever backend Keras runs."""

from __future__ import annotations

from typing import Any

from attzoo.blocks.keras import Block
from attzoo.ops import keras as ops
from attzoo.ops.keras import keras

from . import spec


@keras.saving.register_keras_serializable(package="attzoo_centered")
class Centered(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.Centered`."""

    spec: spec.Centered

    def __init__(self, channels: int, momentum: float = 0.25, **kwargs: Any) -> None:
        super().__init__(spec.Centered(channels, momentum), **kwargs)

    def build(self, input_shape: Any) -> None:
        for name, weight in self.spec.weights.items():
            options = {"shape": weight.shape, "trainable": weight.trainable, "initializer": ops.initialize(weight)}
            setattr(self, name, self.add_weight(name=name, **options))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """(N, *S, C) -> (N, 1.., C)."""
        self.check_inputs(x)
        s = ops.avg_pool(x, self.channels_last)                                  # (N, C)
        table = keras.ops.convert_to_tensor(self.spec.table, dtype=s.dtype)
        weight, center = ops.in_dtype_of(s, self.weight), ops.in_dtype_of(s, self.center)
        z = weight * table * (s - center)                                        # (N, C)
        if training:
            mean = keras.ops.cast(ops.mean(s, 0), self.center.dtype)
            self.center.assign(self.center + self.spec.momentum * (mean - self.center))
        return ops.expand(ops.sigmoid(z), x, self.channels_last)
