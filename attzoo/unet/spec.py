"""The reference U-Net in NumPy, built from the table of plan.py. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from operator import mul
from typing import Any

import numpy as np

from .. import contract, registry
from ..contract import Array, Shape, Spec, Weight, by_name, join_path, without_prefix
from ..ops import numpy as ops
from . import plan
from .plan import Level, Unit
from .settings import Settings


@dataclass(frozen=True)
class UNet(Settings):   # noqa: D101  (its docstring is that of Settings)
    __doc__ = Settings.__doc__

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_blocks()
        gates, blocks = [level.gate for level in self.levels[:-1]], [level.block for level in self.levels]
        skip_options, block_options = (tuple(map(_arguments, specs)) for specs in (gates, blocks))
        contract.set_fields(self, skip_options=skip_options, block_options=block_options)

    def _check_blocks(self) -> None:
        """Raise ValueError if a gate or block does not take as many inputs as the network gives to it."""
        for level in self.levels:
            if self.gating == "grid" and level.gate and len(level.gate.inputs) == 1:
                got = f"got skip={self.skip!r}, a block with one input: set skip='attention_gate' or gating='up'"
                raise ValueError(f"expected a gate with a gating signal for gating='grid', {got}")
            if level.block and len(level.block.inputs) != 1:
                got = f"{self.block!r} with {len(level.block.inputs)}: set skip={self.block!r} for gates"
                raise ValueError(f"block must be the name of a block with one input, got {got}")

    @cached_property
    def levels(self) -> list[Level]:
        """Return the levels, from the finest."""
        return plan.levels(self)

    @cached_property
    def gating_unit(self) -> Unit | None:
        """Return the convolution that makes the gating signal of grid gates from the deepest level, or None."""
        return plan.gating(self)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        return plan.initialized_by(plan.weights(self, self.levels), self.initializer)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Return the number of channels of each input; a network has one."""
        return (self.in_channels,)

    def config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this network, with defaults of None replaced by their values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {"channels": list(self.channels), "strides": list(map(list, self.steps)), "dropout": list(self.rates)}
        options = {name: [dict(mapping) for mapping in values[name]] for name in ("skip_options", "block_options")}
        return values | lists | options

    @classmethod
    def upgraded(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments from a config that this or an older version wrote.

        Older versions wrote some arguments that had no effect; these are left out.
        """
        config = {name: value for name, value in config.items() if name != "gated" or config.get("skip") is not None}
        for inner in ("skip", "block"):
            name, options = config.get(inner), config.get(f"{inner}_options")
            if (
                isinstance(name, str)
                and isinstance(options, list)
                and all(isinstance(option, dict) for option in options)
            ):
                spec = registry.get(name, backend="numpy")
                config[f"{inner}_options"] = [contract.without_idle_rules(spec, option) for option in options]
        return config

    def check_inputs(self, x: Shape, *, channels_last: bool = False) -> None:
        """Raise ValueError unless the shape x is (N, C, *S), or (N, *S, C) with `channels_last`, of any size S >= 1."""
        contract.check_shape(x, self.in_channels, self.spatial_dims, channels_last)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds for x of shape (N, C, *S): convolutions, gates and blocks."""
        level_sizes = plan.sizes(self, x[2:])
        total = prod(level_sizes[0]) * self.weights["head.weight"].size
        if self.gating_unit:
            total += _cost(self.gating_unit, level_sizes[-1])
        for i, level in enumerate(self.levels):
            level_size, size_below = level_sizes[i], level_sizes[min(i + 1, len(level_sizes) - 1)]
            # The upsampled map is cropped to the size of the level only after these convolutions.
            upsampled_size = tuple(map(mul, size_below, self.steps[i])) if level.decoder else level_size
            total += sum(_cost(unit, level_size) for unit in (*level.encoder, *level.decoder))
            total += sum(_cost(unit, size_below if unit.transposed else upsampled_size) for unit in level.up)
            total += _cost(level.combine, level_size) if level.combine else 0
            total += level.supervised * prod(level_size) * level.channels * self.out_channels
            if level.block:
                total += level.block.macs((1, level.channels, *level_size)) * (2 if level.decoder else 1)
            if level.gate:
                signal = size_below if self.gating == "grid" else level_size
                skip = tuple(map(max, level_size, level.min_size))
                shapes = [(1, c, *size) for c, size in zip(level.gate.inputs, (skip, signal), strict=False)]
                total += level.gate.macs(*shapes)
        return x[0] * total

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> dict[str, Array]:
        """(N, C, *S) -> the coefficients of every gate and block by its path, such as "skip.0", channels first."""
        forward = _Forward(self, weights, training)
        forward.run(x)
        return forward.coefficients

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, K, *S). Return the output.

        With training=True, running statistics in `weights` are updated in place. Raises ValueError in training with
        dropout, which is random.
        """
        if training and any(self.rates):
            raise ValueError(f"expected dropout=0 for the NumPy network in training, got dropout={self.rates}")
        return _Forward(self, weights, training).run(x)


@dataclass
class _Forward:
    """A forward pass of a network.

    Attributes:
        net: the network.
        weights: its arrays by canonical name; running statistics are updated in place in training.
        training: whether batch norms use the statistics of the batch.
        coefficients: the coefficients of every gate and block, by path; `run` adds them.
    """

    net: UNet
    weights: Mapping[str, Array]
    training: bool
    coefficients: dict[str, Array] = field(default_factory=dict)

    def run(self, x: Array) -> Array:
        """Return the output for x, and add the coefficients."""
        self.net.check_inputs(x.shape)
        x, heads = self._decode(self._encode(x))
        if heads:
            x = np.concatenate([ops.resize(h, x.shape[2:], "linear", False) for h in reversed(heads)], axis=1)
        y = ops.linear(x, self.weights, "head")
        return ops.sigmoid(y) if self.net.head == "sigmoid" else y

    def _encode(self, x: Array) -> list[Array]:
        """Return the output of each level of the encoder, from the finest."""
        skips = []
        for i, level in enumerate(self.net.levels):
            x = ops.pool(x, level.stride) if level.pool else x
            x = self._attend(f"encoder.{i}.block", level.block, self._convolve(f"encoder.{i}", level.encoder, x))
            skips.append(x)
        return skips

    def _decode(self, skips: Sequence[Array]) -> tuple[Array, list[Array]]:
        """Return the output of the decoder, and the logits of each supervised level, from the coarsest."""
        net, x, heads = self.net, skips[-1], []
        g = self._convolve("gating", [net.gating_unit], x) if net.gating_unit else x
        for i, level in reversed(list(enumerate(net.levels[:-1]))):
            up = ops.crop(self._upsample(i, level, x), skips[i].shape[2:])
            s = self._gate(i, level, skips[i], g if net.gating == "grid" else up)
            concatenated = np.concatenate([s, up] if net.concat == "skip_first" else [up, s], axis=1)
            convolved = self._convolve(f"decoder.{i}", level.decoder, concatenated)
            g = x = self._attend(f"decoder.{i}.block", level.block, convolved)
            if level.supervised:
                heads.append(ops.linear(x, self.weights, f"supervision.{i}"))
        return x, heads

    def _upsample(self, i: int, level: Level, x: Array) -> Array:
        """Return x, the output of level i + 1, upsampled to level i."""
        if level.interpolation:
            size = [length * factor for length, factor in zip(x.shape[2:], self.net.steps[i], strict=True)]
            x = ops.resize(x, size, level.interpolation, align_corners=False)
        return self._convolve(f"up.{i}", level.up, x)

    def _gate(self, i: int, level: Level, skip: Array, g: Array) -> Array:
        """Return the skip connection of level i after its gate, with gating signal g; `skip` itself without a gate."""
        s = ops.crop(self._attend(f"skip.{i}", level.gate, ops.widen(skip, level.min_size), g), skip.shape[2:])
        return self._convolve(f"combine.{i}", [level.combine] if level.combine else [], s)

    def _attend(self, path: str, block: Any, *inputs: Array) -> Array:
        """Return the output of a gate or block, and add its coefficients; the first input if it is None."""
        if block is None:
            return inputs[0]
        inputs, weights = inputs[: len(block.inputs)], without_prefix(path, self.weights)
        copies = {name: array.copy() for name, array in weights.items()}   # attention updates running statistics too
        arrays = by_name(block.attention(*inputs, weights=copies, training=self.training))
        self.coefficients.update({join_path(path, name): array for name, array in arrays.items()})
        return np.asarray(block(*inputs, weights=weights, training=self.training))

    def _convolve(self, path: str, units: Sequence[Unit], x: Array) -> Array:
        """Return x after convolutions in order."""
        for unit in units:
            x = _unit(unit, x, without_prefix(path, self.weights), self.training)
        return x


def _unit(unit: Unit, x: Array, weights: Mapping[str, Array], training: bool) -> Array:
    """Return the convolution of a unit applied to x, with its norm and activation: (N, I, *S) -> (N, O, *T)."""
    x = (ops.transposed if unit.transposed else ops.conv)(x, weights, unit.conv, unit.stride)
    if unit.norm:
        norm_name = f"norm{unit.part}"
        x = ops.instance_norm(x) if unit.norm == "instance" else ops.batch_norm(x, weights, norm_name, training)
    if unit.activation == "prelu":
        return ops.prelu(x, weights[f"activation{unit.part}.weight"])
    return ops.relu(x) if unit.activation else x


def _cost(unit: Unit, sizes: Sequence[int]) -> int:
    """Return the multiply-adds of a convolution. sizes: those of its output, or of its input if it is transposed."""
    return prod(sizes) * prod(unit.kernel) * unit.inputs * unit.outputs


def _arguments(block: Spec | None) -> dict[str, Any]:
    """Return the options of a gate or block, with defaults of None replaced by their values; {} for None."""
    return {key: value for key, value in block.config().items() if key not in plan.SET_BY_NETWORK} if block else {}
