"""The reference U-Net in NumPy, built from the table of plan.py. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from math import prod
from operator import mul
from typing import Any, Final, TypedDict

import numpy as np

from .. import contract, registry
from ..contract import Array, Shape, Spec, Weight, without_prefix
from ..ops import numpy as ops
from . import plan
from .plan import Level, Unit

CHANNELS: Final = (64, 128, 256, 512, 1024)
DOWN: Final = ("max_pool", "conv")
UP: Final = ("nearest", "linear", "transpose")
NORMS: Final = ("batch", "instance", None)
GATING: Final = ("up", "grid")
CONCAT: Final = ("skip_first", "up_first")
DECODERS: Final = ("double", "merge")
HEADS: Final = ("linear", "sigmoid")
INITIALIZERS: Final = ("kaiming", "xavier", "normal", "orthogonal", "glorot", "torch")
MOST_LEVELS: Final = 32   # no image is larger than 2^31; a file that claims a million levels is refused at once

Options = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Arguments(TypedDict, total=False):
    """Keyword arguments of `UNet`, for the signatures in both frameworks; a test compares them with the fields."""

    strides: int | Sequence[int | Sequence[int]]
    kernel_size: int
    norm: str | None
    dropout: float | Sequence[float]
    down: str
    up: str
    up_kernel_size: int | None
    up_conv: bool
    skip: str | None
    skip_options: Options
    gated: int | None
    gating: str
    combine: bool
    concat: str
    decoder: str
    block: str | None
    block_options: Options
    deep_supervision: bool
    head: str
    initializer: str
    spatial_dims: int


@dataclass(frozen=True)
class UNet(contract.NamedArguments):
    """in_channels: C >= 1, channels of the image.

    out_channels: K >= 1, channels of the output: classes, or 1 for one class against the rest.
    channels: 2 to 32 of them, C >= 1 each, channels of every level from the finest; their number is the depth.
    strides: 1 to 32, in pixels, from level to level: one number or one a step, each one number or one per spatial axis.
    kernel_size: odd k >= 1, in pixels, of every convolution but the 1x1 ones and "merge", along every axis.
    norm: "batch", "instance" (without weights) or None, after every convolution.
    dropout: share of values in [0, 1), after the first convolution of every level, or (after the first, the second).
    down: "max_pool", or "conv": the level's first convolution takes the stride.
    up: "nearest" or "linear" resampling, or "transpose": a transposed convolution.
    up_kernel_size: k >= strides, in pixels, of the transposed convolution; None means 4 before a convolution, else 2.
    up_conv: whether a convolution follows that brings the channels down to the level's; else a transposed one does.
    skip: name of a registered gate (or of a block of one input), on the skips; None leaves them plain.
    skip_options: the gate's arguments after its channels, one mapping or one for each level, {} where there is no gate.
    gated: >= 1, how many of the deepest skips have the gate; None means all.
    gating: the gating signal, "up": the upsampled map, or "grid": the map before it, the deepest through a 1x1 layer.
    combine: whether a 1x1 convolution, norm and relu follow each gate.
    concat: "skip_first" or "up_first", the order of the two halves that the decoder sees.
    decoder: "double" convolution, or "merge": one of 3 pixels, instance norm and PReLU.
    block: name of a registered block of one input, after every level's convolutions; None puts none.
    block_options: the block's arguments after its channels, one mapping or one for each level.
    deep_supervision: whether the head sees every level of the decoder, each through a 1x1 layer, linearly upsampled.
    head: "linear" (logits) or "sigmoid".
    initializer: how the convolutions of the whole net start, those of gates and blocks included: "kaiming", "xavier",
        "normal" or "orthogonal" as in the published training code, "glorot" as Keras, "torch" as torch and the blocks.
    spatial_dims: 1, 2 or 3, spatial axes of the image.
    Raises TypeError or ValueError when a value is outside these bounds, or as the gate and the block do.
    """

    in_channels: int
    out_channels: int
    channels: Sequence[int] = CHANNELS
    _: KW_ONLY
    strides: int | Sequence[int | Sequence[int]] = 2
    kernel_size: int = 3
    norm: str | None = "batch"
    dropout: float | Sequence[float] = 0.0
    down: str = "max_pool"
    up: str = "nearest"
    up_kernel_size: int | None = None
    up_conv: bool = True
    skip: str | None = "attention_gate"
    skip_options: Options = ()
    gated: int | None = None
    gating: str = "up"
    combine: bool = False
    concat: str = "skip_first"
    decoder: str = "double"
    block: str | None = None
    block_options: Options = ()
    deep_supervision: bool = False
    head: str = "linear"
    initializer: str = "kaiming"
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        dims = contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3))
        if not isinstance(self.channels, list | tuple) or not 2 <= len(self.channels) <= MOST_LEVELS:
            got = f"{len(self.channels)} of them" if isinstance(self.channels, list | tuple) else repr(self.channels)
            raise ValueError(f"channels must be 2 to {MOST_LEVELS} integers, one a level, got {got}")
        steps = len(self.channels) - 1
        gated, size = self._gated(steps), self.up_kernel_size
        if size is None and self.up == "transpose":
            size = 4 if self.up_conv else 2
        contract.set_fields(
            self,
            in_channels=contract.integer("in_channels", self.in_channels),
            out_channels=contract.integer("out_channels", self.out_channels),
            channels=tuple(contract.integer("channels", c) for c in self.channels),
            strides=_steps(self.strides, steps, dims),
            kernel_size=contract.odd("kernel_size", self.kernel_size),
            norm=contract.choice("norm", self.norm, NORMS),
            dropout=_rates(self.dropout),
            down=contract.choice("down", self.down, DOWN),
            up=contract.choice("up", self.up, UP),
            up_kernel_size=None if size is None else contract.integer("up_kernel_size", size),
            up_conv=contract.flag("up_conv", self.up_conv),
            gated=gated,
            gating=contract.choice("gating", self.gating, GATING),
            combine=contract.flag("combine", self.combine),
            concat=contract.choice("concat", self.concat, CONCAT),
            decoder=contract.choice("decoder", self.decoder, DECODERS),
            deep_supervision=contract.flag("deep_supervision", self.deep_supervision),
            head=contract.choice("head", self.head, HEADS),
            initializer=contract.choice("initializer", self.initializer, INITIALIZERS),
            spatial_dims=dims,
            skip_options=_options("skip_options", self.skip_options, steps, steps - gated if self.skip else 0),
            block_options=_options("block_options", self.block_options, steps + 1),
        )
        self._agree()
        gates, blocks = [level.gate for level in self.levels[:-1]], [level.block for level in self.levels]
        skip_options, block_options = (tuple(map(_arguments, each)) for each in (gates, blocks))
        contract.set_fields(self, skip_options=skip_options, block_options=block_options)

    def _agree(self) -> None:
        """Raise ValueError where arguments contradict each other, or an argument would have no effect."""
        largest = max(max(step) for step in self.steps)
        if self.up != "transpose" and self.up_kernel_size is not None:
            raise ValueError(f"up_kernel_size is for up='transpose', got up={self.up!r}")
        if self.up == "transpose" and self.kernel < largest:
            raise ValueError(f"up_kernel_size must be at least the stride, {largest}, got {self.kernel}")
        if self.skip is None and (any(self.skip_options) or self.gating == "grid" or self.combine or self.gates):
            raise ValueError("skip_options, gated, gating and combine are for a gate, got skip=None")
        if self.block is None and any(self.block_options):
            raise ValueError("block_options are for a block, got block=None")
        for level in self.levels:
            if self.gating == "grid" and level.gate and len(level.gate.inputs) == 1:
                raise ValueError(f"gating='grid' is for a gate with a gating signal, got skip={self.skip!r}")
            if level.block and len(level.block.inputs) != 1:
                raise ValueError(f"block must take one input, {self.block!r} takes {len(level.block.inputs)}")

    def _gated(self, steps: int) -> int:
        """Return the number of skips with a gate; 0 for a network without gates."""
        if self.skip is None:
            return 0 if self.gated is None else contract.integer("gated", self.gated, 0)
        gated = contract.integer("gated", steps if self.gated is None else self.gated)
        if gated > steps:
            raise ValueError(f"gated must be at most {steps}, the number of skips, got {gated}")
        return gated

    # The fields with the types that __post_init__ gives them, for the type checker.

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Return the strides from level to level, per spatial axis."""
        return self.strides   # type: ignore[return-value]

    @property
    def rates(self) -> tuple[float, float]:
        """Dropout after the first and the second convolution of a level."""
        return self.dropout   # type: ignore[return-value]

    @property
    def gates(self) -> int:
        """How many of the deepest skips have the gate."""
        assert self.gated is not None
        return self.gated

    @property
    def kernel(self) -> int:
        """Kernel of the transposed convolution, in pixels."""
        assert self.up_kernel_size is not None
        return self.up_kernel_size

    def arguments(self, of: str, level: int) -> dict[str, Any]:
        """Return the options of the "skip" or the "block" at a level, as passed by the caller."""
        return dict((self.skip_options if of == "skip" else self.block_options)[level])   # type: ignore[index]

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
        """Every array, by canonical name."""
        return plan.started(plan.weights(self), self.initializer)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Channels of each input."""
        return (self.in_channels,)

    def config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this network, with defaults of None replaced by their values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {"channels": list(self.channels), "strides": list(map(list, self.steps)), "dropout": list(self.rates)}
        options = {name: [dict(each) for each in values[name]] for name in ("skip_options", "block_options")}
        return values | lists | options

    @classmethod
    def upgraded(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a file without those that older versions saved although they had no effect."""
        config = {name: value for name, value in config.items() if name != "gated" or config.get("skip") is not None}
        for inner in ("skip", "block"):
            name, options = config.get(inner), config.get(f"{inner}_options")
            if isinstance(name, str) and isinstance(options, list) and all(isinstance(each, dict) for each in options):
                spec = registry.get(name, backend="numpy")
                config[f"{inner}_options"] = [contract.without_idle_rules(spec, each) for each in options]
        return config

    def check_inputs(self, x: Shape, *, channels_last: bool = False) -> None:
        """Raise ValueError unless x is (N, C, *S), of any size."""
        contract.check_shape(x, self.in_channels, self.spatial_dims, channels_last)

    def macs(self, x: Sequence[int]) -> int:
        """Multiply-adds of every convolution, gate and block; resampling is not counted."""
        space = plan.sizes(self, x[2:])
        total = prod(space[0]) * self.weights["head.weight"].size
        if self.gating_unit:
            total += _cost(self.gating_unit, space[-1])
        for i, level in enumerate(self.levels):
            here, below = space[i], space[min(i + 1, len(space) - 1)]
            wide = tuple(map(mul, below, self.steps[i])) if level.decoder else here   # what comes up is cropped last
            total += sum(_cost(unit, here) for unit in (*level.encoder, *level.decoder))
            total += sum(_cost(unit, below if unit.transposed else wide) for unit in level.up)
            total += _cost(level.combine, here) if level.combine else 0
            total += level.supervised * prod(here) * level.channels * self.out_channels
            if level.block:
                total += level.block.macs((1, level.channels, *here)) * (2 if level.decoder else 1)
            if level.gate:
                signal = below if self.gating == "grid" else here
                skip = tuple(map(max, here, level.least))
                shapes = [(1, c, *size) for c, size in zip(level.gate.inputs, (skip, signal), strict=False)]
                total += level.gate.macs(*shapes)
        return x[0] * total

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> dict[str, Array]:
        """(N, C, *S) -> the coefficients of every gate and block, by its path."""
        seen: dict[str, Array] = {}
        self._run(x, weights, training, seen)
        return seen

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, K, *S). Raises ValueError in training with dropout, which is random."""
        if training and any(self.rates):
            raise ValueError(f"expected dropout=0 for the NumPy network in training, got dropout={self.rates}")
        return self._run(x, weights, training, {})

    def _run(self, x: Array, weights: Mapping[str, Array], training: bool, seen: dict[str, Array]) -> Array:
        self.check_inputs(x.shape)

        def inner(path: str, block: Any, *inputs: Array) -> Array:
            if block is None:
                return inputs[0]
            inputs, w = inputs[: len(block.inputs)], without_prefix(path, weights)
            seen[path] = block.attention(*inputs, weights={k: v.copy() for k, v in w.items()}, training=training)
            return np.asarray(block(*inputs, weights=w, training=training))

        def units(path: str, x: Array, units: Sequence[Unit]) -> Array:
            for unit in units:
                x = _unit(unit, x, without_prefix(path, weights), training)
            return x

        skips = []
        for i, level in enumerate(self.levels):
            x = ops.pool(x, level.stride) if level.pool else x
            x = inner(f"encoder.{i}.block", level.block, units(f"encoder.{i}", x, level.encoder))
            skips.append(x)
        g = units("gating", x, [self.gating_unit]) if self.gating_unit else x
        heads = []
        for i, level in reversed(list(enumerate(self.levels[:-1]))):
            e, up = skips[i], x
            if level.interpolation:
                size = [n * s for n, s in zip(up.shape[2:], self.steps[i], strict=True)]
                up = ops.resize(up, size, level.interpolation, align_corners=False)
            up = ops.crop(units(f"up.{i}", up, level.up), e.shape[2:])
            s = inner(f"skip.{i}", level.gate, ops.widen(e, level.least), g if self.gating == "grid" else up)
            s = ops.crop(s, e.shape[2:])
            s = units(f"combine.{i}", s, [level.combine] if level.combine else [])
            both = np.concatenate([s, up] if self.concat == "skip_first" else [up, s], axis=1)
            g = x = inner(f"decoder.{i}.block", level.block, units(f"decoder.{i}", both, level.decoder))
            if level.supervised:
                heads.append(ops.linear(x, weights, f"supervision.{i}"))
        if heads:
            x = np.concatenate([ops.resize(h, x.shape[2:], "linear", False) for h in reversed(heads)], axis=1)
        y = ops.linear(x, weights, "head")
        return ops.sigmoid(y) if self.head == "sigmoid" else y


def _unit(unit: Unit, x: Array, weights: Mapping[str, Array], training: bool) -> Array:
    x = (ops.transposed if unit.transposed else ops.conv)(x, weights, unit.conv, unit.stride)
    if unit.norm:
        norm = f"norm{unit.part}"
        x = ops.instance_norm(x) if unit.norm == "instance" else ops.batch_norm(x, weights, norm, training)
    if unit.activation == "prelu":
        return ops.prelu(x, weights[f"activation{unit.part}.weight"])
    return ops.relu(x) if unit.activation else x


def _cost(unit: Unit, space: Sequence[int]) -> int:
    """Multiply-adds of a convolution whose result, or, where it is transposed, whose input has this size."""
    return prod(space) * prod(unit.kernel) * unit.inputs * unit.outputs


def _steps(strides: Any, count: int, dims: int) -> tuple[tuple[int, ...], ...]:
    each = list(strides) if isinstance(strides, list | tuple) else [strides] * count
    if len(each) != count:
        raise ValueError(f"strides must be one number or {count}, one between levels, got {strides!r}")
    found = []
    for step in each:
        axes = list(step) if isinstance(step, list | tuple) else [step] * dims
        if len(axes) != dims:
            raise ValueError(f"a stride must be one number or {dims}, one per spatial axis, got {step!r}")
        found.append(tuple(contract.integer("strides", s) for s in axes))
        if max(found[-1]) > 32:   # a file could ask for maps that fit in no memory
            raise ValueError(f"strides must be at most 32, got {max(found[-1])}")
    return tuple(found)


def _rates(dropout: Any) -> tuple[float, float]:
    each = list(dropout) if isinstance(dropout, list | tuple) else [dropout, 0.0]
    if len(each) != 2:
        raise ValueError(f"dropout must be one number or two, got {dropout!r}")
    for rate in each:
        if not 0 <= contract.number("dropout", rate) < 1:
            raise ValueError(f"dropout must be in [0, 1), got {rate}")
    return float(each[0]), float(each[1])


def _options(name: str, options: Any, count: int, first: int = 0) -> tuple[Mapping[str, Any], ...]:
    """Return the options of every level; the levels before `first` have no gate or block and must have none."""
    if isinstance(options, Mapping):
        return ({},) * first + (dict(options),) * (count - first)
    if not isinstance(options, list | tuple) or len(options) not in (0, count):
        raise ValueError(f"{name} must be a mapping or {count} of them, one a level, got {options!r}")
    if any(not isinstance(each, Mapping) for each in options):
        raise TypeError(f"{name} must be mappings of argument to value, got {options!r}")
    if any(idle := options[:first]):
        raise ValueError(f"{name} must be {{}} for the {first} finest levels, which have none, got {list(idle)!r}")
    return tuple(dict(each) for each in options) or ({},) * count


def _arguments(block: Spec | None) -> dict[str, Any]:
    """Return a block's options, with defaults of None replaced by their values."""
    return {k: v for k, v in block.config().items() if k not in plan.OWN} if block else {}
