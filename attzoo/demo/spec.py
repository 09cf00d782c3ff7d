"""The demo's network said once, in NumPy; torch.py and keras.py must agree with this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Final

from .. import contract, registry
from ..contract import Array, Shape, Spec, Weight, batch_norm, fan_in_uniform, kaiming_normal, part, prefixed
from ..ops import numpy as ops

KERNEL: Final = 3   # pixels, of every convolution
SIZE: Final = 8     # pixels, height and width of an image
GRID: Final = 4     # cells along each axis, of what the head sees


@dataclass(frozen=True)
class Stage:
    """channels: C >= 1, channels of the input and of every layer.

    block: name of a registered block, put at the end of the residual branch; None puts none.
    options: the block's arguments after its channels.
    Raises TypeError or ValueError when a value is outside these bounds, or as the block does.
    """

    channels: int
    block: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        contract.set_fields(self, channels=contract.integer("channels", self.channels), options=dict(self.options))
        _ = self.weights   # the block's checks are ours

    @cached_property
    def inner(self) -> Spec | None:
        """The block."""
        return registry.create(self.block, self.channels, backend="numpy", **self.options) if self.block else None

    @property
    def inputs(self) -> tuple[int, ...]:
        """Channels of each input."""
        return (self.channels,)

    @property
    def taken(self) -> int:
        """How many of (branch, shortcut) the block takes."""
        return len(self.inner.inputs) if self.inner else 1

    @property
    def weights(self) -> dict[str, Weight]:
        """Every array, by canonical name."""
        c, k = self.channels, (KERNEL, KERNEL)
        weights = kaiming_normal("conv1", (c, c, *k), bias=False) | batch_norm("norm1", c)
        weights |= kaiming_normal("conv2", (c, c, *k), bias=False) | batch_norm("norm2", c)
        return weights | (prefixed("block", self.inner.weights) if self.inner else {})

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this very stage."""
        return asdict(self)

    def check_inputs(self, x: Shape, *, channels_last: bool = False) -> None:
        """Raise ValueError unless x is (N, C, H, W)."""
        contract.check_shape(x, self.channels, 2, channels_last)

    def macs(self, x: Sequence[int]) -> int:
        """Multiply-adds of both convolutions and the block."""
        convs = 2 * x[0] * prod(x[2:]) * (KERNEL * self.channels) ** 2
        return convs + (self.inner.macs(*(x,) * self.taken) if self.inner else 0)

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, H, W) -> the block's coefficients. Raises ValueError where there is no block."""
        if not self.inner:
            raise ValueError("expected a stage with a block, got block=None")
        return self.inner.attention(
            *self.branch(x, weights, training), weights=part("block", weights), training=training
        )

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, H, W) -> (N, C, H, W)."""
        b = self.branch(x, weights, training)
        y = self.inner(*b, weights=part("block", weights), training=training) if self.inner else b[0]
        return ops.relu(x + y)

    def branch(self, x: Array, weights: Mapping[str, Array], training: bool) -> tuple[Array, ...]:
        """(N, C, H, W) -> what the block takes: the branch, and the shortcut where it wants a gating signal."""
        self.check_inputs(x.shape)
        h = ops.relu(ops.batch_norm(ops.conv_same(x, weights["conv1.weight"]), weights, "norm1", training))
        b = ops.batch_norm(ops.conv_same(h, weights["conv2.weight"]), weights, "norm2", training)
        return (b, x)[: self.taken]


@dataclass(frozen=True)
class ResNet:
    """channels: C >= 1, channels of every layer but the head.

    block, options: as `Stage` has them.
    classes: K >= 1, outputs.
    Raises TypeError or ValueError when a value is outside these bounds, or as the block does.
    """

    channels: int
    block: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 10

    def __post_init__(self) -> None:
        contract.set_fields(self, **self.stage.config(), classes=contract.integer("classes", self.classes))

    @cached_property
    def stage(self) -> Stage:
        """What stage1 and stage2 both are."""
        return Stage(self.channels, self.block, self.options)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Channels of each input: one, grey."""
        return (1,)

    @property
    def weights(self) -> dict[str, Weight]:
        """Every array, by canonical name."""
        c, stage = self.channels, self.stage.weights
        weights = kaiming_normal("stem", (c, 1, KERNEL, KERNEL), bias=False) | batch_norm("stem_norm", c)
        weights |= prefixed("stage1", stage) | prefixed("stage2", stage)
        return weights | fan_in_uniform("head", (self.classes, c * GRID**2), bias=True)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this very network."""
        return asdict(self)

    def check_inputs(self, x: Shape, *, channels_last: bool = False) -> None:
        """Raise ValueError unless x is (N, 1, 8, 8)."""
        contract.check_shape(x, 1, 2, channels_last)
        if any(size not in (SIZE, None) for size in (x[1:3] if channels_last else x[2:4])):
            raise ValueError(f"expected images of {SIZE} x {SIZE} pixels, got {tuple(x)}")

    def macs(self, x: Sequence[int]) -> int:
        """Multiply-adds of stem, stages and head."""
        stem, head = (SIZE * KERNEL) ** 2 * self.channels, self.channels * GRID**2 * self.classes
        return x[0] * (stem + head) + 2 * self.stage.macs((x[0], self.channels, SIZE, SIZE))

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, 1, 8, 8) -> the last block's coefficients. Raises ValueError where there is no block."""
        x = self.stage(self._stem(x, weights, training), weights=part("stage1", weights), training=training)
        return self.stage.attention(x, weights=part("stage2", weights), training=training)

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, 1, 8, 8) -> (N, K)."""
        x = self._stem(x, weights, training)
        x = self.stage(x, weights=part("stage1", weights), training=training)
        x = self.stage(x, weights=part("stage2", weights), training=training)
        cells = x.reshape(*x.shape[:2], GRID, SIZE // GRID, GRID, SIZE // GRID).mean((3, 5))    # (N, C, 4, 4)
        return ops.linear(cells.reshape(len(x), -1), weights, "head")

    def _stem(self, x: Array, weights: Mapping[str, Array], training: bool) -> Array:
        self.check_inputs(x.shape)
        return ops.relu(ops.batch_norm(ops.conv_same(x, weights["stem.weight"]), weights, "stem_norm", training))
