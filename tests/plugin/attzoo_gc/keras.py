"""GC in Keras 3, on whichever backend Keras runs."""

from __future__ import annotations

from typing import Any

from attzoo.blocks.keras import Block
from attzoo.ops import keras as ops
from attzoo.ops.keras import keras

from . import spec


@keras.saving.register_keras_serializable(package="attzoo_gc")
class GC(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.GC`."""

    spec: spec.GC

    def __init__(self, channels: int, width: int = 3, **kwargs: Any) -> None:
        super().__init__(spec.GC(channels, width), **kwargs)
        self.score, self.squeeze, self.excite = self.linear("score"), self.linear("squeeze"), self.linear("excite")
        self.norm = self.layer_norm("norm")

    def build(self, input_shape: Any) -> None:
        self.score.build((None, self.spec.channels))
        self.squeeze.build((None, self.spec.channels))
        self.norm.build((None, self.spec.width))
        self.excite.build((None, self.spec.width))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """(N, *S, C) -> (N, 1.., C)."""
        self.check_inputs(x)
        last = ops.to_last(x, self.channels_last)
        weights_of_positions = ops.position_softmax(self.score(last), channels_last=True)    # (N, *S, 1)
        s = ops.weighted_pool(last, weights_of_positions, channels_last=True)                # (N, C)
        h = self.norm(self.squeeze(s))
        return ops.expand(self.excite(ops.relu(h)), x, self.channels_last)
