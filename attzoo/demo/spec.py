"""The residual network of the demo in NumPy, the reference for the same network in torch.py and keras.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Final

from .. import contract, registry
from ..contract import (
    Array,
    Coefficients,
    Shape,
    Spec,
    Weight,
    batch_norm,
    fan_in_uniform,
    kaiming_normal,
    prefixed,
    without_prefix,
)
from ..ops import numpy as ops

KERNEL: Final = 3   # side of the kernel of every convolution, in pixels
SIZE: Final = 8     # height and width of an image, in pixels
GRID: Final = 4     # height and width of the pooled input of the head


@dataclass(frozen=True)
class Stage:
    """A residual stage: two convolutions with batch norm, a block, and the shortcut.

    Args:
        channels: C >= 1, the channels of the input and of every layer.
        block: the name of a registered block at the end of the residual branch; None for no block.
        options: the keyword arguments of the block other than `channels`.

    Raises:
        TypeError, ValueError: if an argument or an option of the block is invalid.
    """

    channels: int
    block: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        contract.set_fields(self, channels=contract.integer("channels", self.channels), options=dict(self.options))
        _ = self.weights   # raises if the block's arguments are invalid

    @cached_property
    def block_spec(self) -> Spec | None:
        """The spec of the block (its arguments, weights and NumPy computation); None for no block."""
        return registry.create(self.block, self.channels, backend="numpy", **self.options) if self.block else None

    @property
    def inputs(self) -> tuple[int, ...]:
        """The number of channels of each input of the stage, which has one input."""
        return (self.channels,)

    @property
    def block_input_count(self) -> int:
        """The number of inputs of the block: 1, or 2 if it takes the shortcut as gating signal."""
        return len(self.block_spec.inputs) if self.block_spec else 1

    @property
    def weights(self) -> dict[str, Weight]:
        """The shape and the initialization of each weight, by its name in files."""
        c, k = self.channels, (KERNEL, KERNEL)
        weights = kaiming_normal("conv1", (c, c, *k), bias=False) | batch_norm("norm1", c)
        weights |= kaiming_normal("conv2", (c, c, *k), bias=False) | batch_norm("norm2", c)
        return weights | (prefixed("block", self.block_spec.weights) if self.block_spec else {})

    def config(self) -> dict[str, Any]:
        """Return the arguments that create an equal stage."""
        return asdict(self)

    def check_inputs(self, x: Shape, *, channels_last: bool = False) -> None:
        """Raise ValueError unless the shape x is (N, C, H, W), or (N, H, W, C) with channels_last."""
        contract.check_shape(x, self.channels, 2, channels_last)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the convolutions and the block for an input of shape x (N, C, H, W)."""
        convs = 2 * x[0] * prod(x[2:]) * (KERNEL * self.channels) ** 2
        return convs + (self.block_spec.macs(*(x,) * self.block_input_count) if self.block_spec else 0)

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Coefficients:
        """Return the attention coefficients of the block for x (N, C, H, W). Raise ValueError if there is no block.

        Args:
            x: the input of the stage.
            weights: the arrays of the stage's weights, by name.
            training: whether batch norm uses the statistics of the batch, not the running ones.
        """
        if not self.block_spec:
            raise ValueError("expected a stage with a block, got block=None: give the name of a block as `block`")
        inputs = self.block_inputs(x, weights, training)
        return self.block_spec.attention(*inputs, weights=without_prefix("block", weights), training=training)

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """Return the stage's output, (N, C, H, W), for x (N, C, H, W). Arguments as `attention`."""
        inputs = self.block_inputs(x, weights, training)
        if self.block_spec is None:
            return ops.relu(x + inputs[0])
        return ops.relu(x + self.block_spec(*inputs, weights=without_prefix("block", weights), training=training))

    def block_inputs(self, x: Array, weights: Mapping[str, Array], training: bool) -> tuple[Array, ...]:
        """Return the block's inputs (N, C, H, W) for x: the residual branch, and x if it takes a gating signal."""
        self.check_inputs(x.shape)
        h = ops.relu(ops.batch_norm(ops.conv_same(x, weights["conv1.weight"]), weights, "norm1", training))
        residual = ops.batch_norm(ops.conv_same(h, weights["conv2.weight"]), weights, "norm2", training)
        return (residual, x)[: self.block_input_count]


@dataclass(frozen=True)
class ResNet:
    """A residual network for 8x8 digits: a stem, two stages and a linear head.

    Args:
        channels: C >= 1, the channels of every layer except the head.
        block: the name of the block in both stages, as in `Stage`.
        options: the keyword arguments of the block, as in `Stage`.
        classes: K >= 1, the number of classes.

    Raises:
        TypeError, ValueError: if an argument or an option of the block is invalid.
    """

    channels: int
    block: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 10

    def __post_init__(self) -> None:
        contract.set_fields(self, **self.stage.config(), classes=contract.integer("classes", self.classes))

    @cached_property
    def stage(self) -> Stage:
        """The spec of stage1 and of stage2."""
        return Stage(self.channels, self.block, self.options)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The channels of each input: one grey image."""
        return (1,)

    @property
    def weights(self) -> dict[str, Weight]:
        """The shape and the initialization of each weight, by its name in files."""
        c, stage = self.channels, self.stage.weights
        weights = kaiming_normal("stem", (c, 1, KERNEL, KERNEL), bias=False) | batch_norm("stem_norm", c)
        weights |= prefixed("stage1", stage) | prefixed("stage2", stage)
        return weights | fan_in_uniform("head", (self.classes, c * GRID**2), bias=True)

    def config(self) -> dict[str, Any]:
        """Return the arguments that create an equal network."""
        return asdict(self)

    def check_inputs(self, x: Shape, *, channels_last: bool = False) -> None:
        """Raise ValueError unless the shape x is (N, 1, 8, 8), or (N, 8, 8, 1) with channels_last."""
        contract.check_shape(x, 1, 2, channels_last)
        if any(size not in (SIZE, None) for size in (x[1:3] if channels_last else x[2:4])):
            raise ValueError(f"expected images of {SIZE} x {SIZE} pixels, got the shape {tuple(x)}")

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the stem, stages and head for an input of shape x (N, 1, 8, 8)."""
        stem, head = (SIZE * KERNEL) ** 2 * self.channels, self.channels * GRID**2 * self.classes
        return x[0] * (stem + head) + 2 * self.stage.macs((x[0], self.channels, SIZE, SIZE))

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Coefficients:
        """Return the coefficients of stage2's block for images x (N, 1, 8, 8). Raise ValueError without a block."""
        x = self.stage(self._stem(x, weights, training), weights=without_prefix("stage1", weights), training=training)
        return self.stage.attention(x, weights=without_prefix("stage2", weights), training=training)

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """Return the logits, (N, K), for images x (N, 1, 8, 8). Arguments as `Stage.attention`."""
        x = self._stem(x, weights, training)
        x = self.stage(x, weights=without_prefix("stage1", weights), training=training)
        x = self.stage(x, weights=without_prefix("stage2", weights), training=training)
        pooled = x.reshape(*x.shape[:2], GRID, SIZE // GRID, GRID, SIZE // GRID).mean((3, 5))    # (N, C, 4, 4)
        return ops.linear(pooled.reshape(len(x), -1), weights, "head")

    def _stem(self, x: Array, weights: Mapping[str, Array], training: bool) -> Array:
        """Return the input of stage1, (N, C, 8, 8), for images x (N, 1, 8, 8)."""
        self.check_inputs(x.shape)
        return ops.relu(ops.batch_norm(ops.conv_same(x, weights["stem.weight"]), weights, "stem_norm", training))
