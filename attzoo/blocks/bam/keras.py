"""BAM in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class BAM(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.BAM`."""

    spec: spec.BAM

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        dilation: int = 4,
        combination: str = "one_plus_sigmoid_of_product",
        norm: bool = True,
        norm_after: str = "hidden",
        spatial_dims: int = 2,
        **kwargs: Any,
    ) -> None:
        further_args = (dilation, combination, norm, norm_after, spatial_dims)
        super().__init__(spec.BAM(channels, reduction, reduced_channels, *further_args), **kwargs)
        self.squeeze, self.excite = self.linear("squeeze"), self.linear("excite")
        self.reduce, self.score = self.linear("reduce"), self.linear("score")
        self.context1 = self.conv_same("context1", dilation=self.spec.dilation)
        self.context2 = self.conv_same("context2", dilation=self.spec.dilation)
        self.squeeze_norm, self.excite_norm = self.batch_norm("squeeze_norm"), self.batch_norm("excite_norm")
        self.reduce_norm, self.score_norm = self.batch_norm("reduce_norm"), self.batch_norm("score_norm")
        self.context1_norm, self.context2_norm = self.batch_norm("context1_norm"), self.batch_norm("context2_norm")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        wide, narrow = (None, self.spec.channels), (None, self.spec.width)
        for layer in (self.squeeze, self.reduce, self.excite_norm):
            layer.build(wide)
        for layer in (self.excite, self.score, self.squeeze_norm, self.reduce_norm):
            layer.build(narrow)
        self.score_norm.build((None, 1))
        self.context1.build(None)
        self.context1_norm.build(narrow)
        self.context2.build(None)
        self.context2_norm.build(narrow)

    def attention(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Return the coefficients before the sigmoid: (N, *S, C) -> channel (N, 1.., C), position (N, *S, 1)."""
        self.check_inputs(x)
        s = ops.avg_pool(x, self.channels_last)                              # (N, C)
        u = self.squeeze_norm(self.squeeze(s), training=training)
        c = self.excite_norm(self.excite(ops.relu(u)), training=training)
        h = self.reduce_norm(self.reduce(ops.to_last(x, self.channels_last)), training=training)
        h = self.context1_norm(self.context1(ops.relu(h)), training=training)    # (N, *S, R)
        h = self.context2_norm(self.context2(ops.relu(h)), training=training)
        p = self.score_norm(self.score(ops.relu(h)), training=training)
        return {"channel": ops.expand(c, x, self.channels_last), "position": ops.from_last(p, self.channels_last)}
