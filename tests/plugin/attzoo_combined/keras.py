"""scSE with any combination, in Keras 3, on whichever backend Keras runs."""

from __future__ import annotations

from typing import Any

from attzoo.blocks.keras import Block
from attzoo.ops import keras as ops
from attzoo.ops.keras import keras

from . import spec


@keras.saving.register_keras_serializable(package="attzoo_combined")
class Combined(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.Combined`."""

    spec: spec.Combined

    def __init__(
        self, channels: int, width: int = 2, combination: str = "sum_of_products", **kwargs: Any
    ) -> None:
        super().__init__(spec.Combined(channels, width, combination), **kwargs)
        self.squeeze, self.excite, self.score = self.linear("squeeze"), self.linear("excite"), self.linear("score")

    def build(self, input_shape: Any) -> None:
        self.squeeze.build((None, self.spec.channels))
        self.excite.build((None, self.spec.width))
        self.score.build((None, self.spec.channels))

    def attention(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """(N, *S, C) -> channel (N, 1.., C), position (N, *S, 1)."""
        self.check_inputs(x)
        s = ops.avg_pool(x, self.channels_last)                    # (N, C)
        h = ops.relu(self.squeeze(s))
        z = self.excite(h)                                         # (N, C)
        logits = self.score(ops.to_last(x, self.channels_last))         # (N, *S, 1)
        position = ops.from_last(ops.sigmoid(logits), self.channels_last)
        return {"channel": ops.expand(ops.sigmoid(z), x, self.channels_last), "position": position}
