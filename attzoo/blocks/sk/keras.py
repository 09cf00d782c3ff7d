"""SK in Keras 3, for all backends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from ...ops import keras as ops
from ...ops.keras import keras
from ..keras import Block, without_variable
from . import spec


@ops.register
class SK(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.SK`."""

    spec: spec.SK

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        kernel_sizes: Sequence[int] = (3, 5),
        dilated: bool = True,
        groups: int | None = None,
        split: bool = False,
        spatial_dims: int = 2,
        **kwargs: Any,
    ) -> None:
        further_args = (kernel_sizes, dilated, groups, split, spatial_dims)
        super().__init__(spec.SK(channels, reduction, reduced_channels, *further_args), **kwargs)
        for name, dilation in self.spec.paths.items():
            setattr(self, name, self.conv_same(name, dilation=dilation))
            setattr(self, f"{name}_norm", self.batch_norm(f"{name}_norm"))
        self.reduce, self.reduce_norm = self.linear("reduce"), self.batch_norm("reduce_norm")
        self.select = self.linear("select")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        for name in self.spec.paths:
            getattr(self, name).build(None)
            getattr(self, f"{name}_norm").build((None, self.spec.channels))
        self.reduce.build((None, self.spec.channels))
        self.reduce_norm.build((None, self.spec.width))
        self.select.build((None, self.spec.width))

    def attention(self, x: Any, training: bool | None = None, outputs: Any = None) -> dict[str, Any]:
        """Return the coefficients: (N, *S, C) -> (N, 1.., C) per path. outputs: those of the paths, if known."""
        self.check_inputs(x)
        outputs = self.operands(x, training) if outputs is None else outputs
        s = ops.avg_pool(reduce(add, outputs), self.channels_last)                    # (N, C)
        h = self.reduce_norm(self.reduce(s), training=training)                       # (N, R)
        z = keras.ops.reshape(self.select(ops.relu(h)), (-1, len(self.spec.paths), self.spec.channels))
        a = keras.ops.softmax(keras.ops.cast(z, ops.wide(z.dtype)), axis=1)           # (N, paths, C)
        a = keras.ops.cast(a, x.dtype)
        return {name: ops.expand(a[:, i], x, self.channels_last) for i, name in enumerate(self.spec.paths)}

    def operands(self, x: Any, training: bool | None = None) -> list[Any]:
        """Return the outputs of the paths: (N, *S, C) -> (N, *S, C) per path."""
        x, names = ops.to_last(without_variable(x), self.channels_last), list(self.spec.paths)
        parts = keras.ops.split(x, len(names), axis=-1) if self.spec.split else [x] * len(names)
        outputs = []
        for name, part in zip(names, parts, strict=True):
            u = getattr(self, f"{name}_norm")(getattr(self, name)(part), training=training)
            outputs.append(ops.from_last(ops.relu(u), self.channels_last))
        return outputs

    def call(self, x: Any, training: bool | None = None, attention_only: bool = False) -> Any:
        """Return the output for x or, with `attention_only`, the coefficients of `attention`."""
        if attention_only:
            return self.attention(x, training=training)
        self.check_inputs(x)
        outputs = self.operands(x, training)
        return self.spec.combine(outputs, self.attention(x, training=training, outputs=outputs), ops)
