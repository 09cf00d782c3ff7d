"""The residual network of the demo in Keras 3, its training and its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .. import registry
from ..adapters.keras import to_array, to_tensor
from ..blocks.keras import Block
from ..contract import Array
from ..ops import keras as ops
from ..ops.keras import keras
from . import spec


class ResNet(Block):
    """The residual network in Keras: images (N, 8, 8, 1), or (N, 1, 8, 8) by data_format, to logits (N, K).

    The other arguments and the errors are those of `spec.ResNet`.
    """

    spec: spec.ResNet

    def __init__(
        self,
        channels: int,
        block: str | None = None,
        options: Mapping[str, Any] | None = None,
        classes: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(args := spec.ResNet(channels, block, options or {}, classes), **kwargs)
        self.stem, self.stem_norm = self.conv_same("stem"), self.batch_norm("stem_norm")
        self.stage1 = Stage(**args.stage.config(), name="stage1", dtype=self.dtype_policy)
        self.stage2 = Stage(**args.stage.config(), name="stage2", dtype=self.dtype_policy)
        self.head = self.linear("head")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        feature_shape = (None, None, None, self.spec.channels)
        self.stem.build(None)
        self.stem_norm.build(feature_shape)
        self.stage1.build(feature_shape)
        self.stage2.build(feature_shape)
        self.head.build((None, self.spec.channels * spec.GRID**2))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients of the block in stage2 for images x, in the layout of data_format."""
        self.check_inputs(x)
        x = self.stem(ops.to_last(x, self.channels_last))
        x = ops.relu(self.stem_norm(x, training=training))
        a = self.stage2.attention(self.stage1(x, training=training), training=training)
        return ops.from_last(a, self.channels_last)

    def call(self, x: Any, training: bool | None = None) -> Any:   # type: ignore[override]
        """Return the logits (N, K) for images x."""
        self.check_inputs(x)
        x = self.stem(ops.to_last(x, self.channels_last))
        x = ops.relu(self.stem_norm(x, training=training))
        x = self.stage2(self.stage1(x, training=training), training=training)
        grid, side = spec.GRID, spec.SIZE // spec.GRID
        x = ops.mean(keras.ops.reshape(x, (-1, grid, side, grid, side, self.spec.channels)), (2, 4))    # (N, 4, 4, C)
        x = keras.ops.moveaxis(x, -1, 1)    # the order of the head's inputs is channels first
        return self.head(keras.ops.reshape(x, (-1, self.spec.channels * grid**2)))


class Stage(Block):
    """A residual stage in Keras, (N, H, W, C) to (N, H, W, C), always channels last.

    The arguments and the errors are those of `spec.Stage`.
    """

    spec: spec.Stage

    def __init__(
        self, channels: int, block: str | None = None, options: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(args := spec.Stage(channels, block, options or {}), data_format="channels_last", **kwargs)
        self.conv1, self.norm1 = self.conv_same("conv1"), self.batch_norm("norm1")
        self.conv2, self.norm2 = self.conv_same("conv2"), self.batch_norm("norm2")
        self.block = ops.Identity(name="block", dtype=self.dtype_policy)
        if args.block:
            settings = {"name": "block", "data_format": "channels_last", "dtype": self.dtype_policy}
            self.block = registry.create(args.block, args.channels, backend="keras", **args.options, **settings)

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        feature_shape = (None, None, None, self.spec.channels)
        self.conv1.build(None)
        self.norm1.build(feature_shape)
        self.conv2.build(None)
        self.norm2.build(feature_shape)
        self.block.build(*(feature_shape,) * self.spec.block_input_count)

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the attention coefficients of the block for x (N, H, W, C), channels last."""
        return self.block.attention(*self.block_inputs(x, training), training=training)

    def call(self, x: Any, training: bool | None = None) -> Any:   # type: ignore[override]
        """Return relu(x + block(...)) for x (N, H, W, C)."""
        return ops.relu(x + self.block(*self.block_inputs(x, training), training=training))

    def block_inputs(self, x: Any, training: bool | None) -> tuple[Any, ...]:
        """Return the block's inputs (N, H, W, C) for x: the residual branch, and x if it takes a gating signal."""
        self.check_inputs(x)
        h = ops.relu(self.norm1(self.conv1(x), training=training))
        residual = self.norm2(self.conv2(h), training=training)
        return (residual, x)[: self.spec.block_input_count]


def fit(net: ResNet, batches: Iterable[tuple[Array, Any]], rate: float, momentum: float) -> Iterator[float]:
    """Train `net` in place with SGD, one step for each batch. Yield the mean cross-entropy of each step.

    Args:
        net: the network.
        batches: images (N, 1, 8, 8) and labels (N,).
        rate: the learning rate.
        momentum: the momentum of SGD.
    """
    model = keras.Sequential([net])
    model.compile(
        keras.optimizers.SGD(rate, momentum=momentum), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    for images, labels in batches:
        model.reset_metrics()   # older versions of Keras return the mean loss since the last reset
        yield float(model.train_on_batch(to_tensor(images, net), labels))


def predict(net: ResNet, images: Array) -> Array:
    """Return the logits, (N, K), of images (N, 1, 8, 8) in inference mode."""
    return to_array(net(to_tensor(images, net), training=False), net)
