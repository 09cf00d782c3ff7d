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
from ..contract import Array, Shape, Spec, Weight, by_name, join_path, without_prefix
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
    strides: 1 to 32, in pixels: one number, or one from each level to the next; each a number or one per spatial axis.
    kernel_size: odd k >= 1, in pixels along every axis, of all convolutions except 1x1 ones and those of "merge".
    norm: "batch", "instance" (without weights) or None, after every convolution.
    dropout: probability in [0, 1) after the first convolution of every level, or two, after the first and the second.
    down: "max_pool", or "conv": the first convolution of the level has the stride.
    up: "nearest" or "linear" resampling, or "transpose": a transposed convolution.
    up_kernel_size: k >= strides, in pixels, of the transposed convolution; None means 4 before a convolution, else 2.
    up_conv: whether a convolution after the upsampling reduces the channels to the level's. If False, a transposed
        convolution does so.
    skip: name of a registered gate, or of a block with one input, on the skip connections; None for none.
    skip_options: arguments of the gate except channels, one mapping or one per level; {} for a level without a gate.
    gated: >= 1, number of skip connections that have the gate, from the deepest; None means all.
    gating: the gating signal: "up", the upsampled feature map, or "grid", the feature map before upsampling, which for
        the deepest gate passes through a 1x1 convolution.
    combine: whether a 1x1 convolution, norm and relu follow each gate.
    concat: "skip_first" or "up_first", the order in which skip and upsampled map are concatenated.
    decoder: "double", two convolutions, or "merge", one of 3 pixels with instance norm and PReLU.
    block: name of a registered block with one input, after the convolutions of every level; None for none.
    block_options: arguments of the block except channels, one mapping or one per level.
    deep_supervision: whether the head uses every level of the decoder, each through a 1x1 convolution and linear
        upsampling.
    head: "linear" (logits) or "sigmoid".
    initializer: initialization of all convolutions, those of gates and blocks included: "kaiming", "xavier", "normal"
        or "orthogonal" as in the published training code, "glorot" as in Keras, "torch" as in torch and single blocks.
    spatial_dims: 1, 2 or 3, spatial axes of the image.
    Raises TypeError for a value of another type, ValueError for a value outside these bounds or for contradictions, and
    the errors of the gate and the block for their options.
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
            raise ValueError(f"channels must be 2 to {MOST_LEVELS} integers, one per level, got {got}")
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
        skip_options, block_options = (tuple(map(_arguments, specs)) for specs in (gates, blocks))
        contract.set_fields(self, skip_options=skip_options, block_options=block_options)

    def _agree(self) -> None:
        """Raise ValueError where arguments contradict each other, or an argument would have no effect."""
        largest = max(max(step) for step in self.steps)
        if self.up != "transpose" and self.up_kernel_size is not None:
            got = f"got {self.up_kernel_size} and up={self.up!r}"
            raise ValueError(f"up_kernel_size must be None unless up='transpose', {got}")
        if self.up == "transpose" and self.kernel < largest:
            raise ValueError(f"up_kernel_size must be at least the largest stride, {largest}, got {self.kernel}")
        for_gates = {
            "skip_options": any(self.skip_options),
            "gated": self.gates > 0,
            "gating='grid'": self.gating == "grid",
            "combine": self.combine,
        }
        if self.skip is None and (given := [name for name, is_given in for_gates.items() if is_given]):
            fix = f"set skip='attention_gate', or leave {given[0]} out"
            raise ValueError(f"expected a gate in skip for {', '.join(given)}, got skip=None: {fix}")
        if self.block is None and any(self.block_options):
            fix = "set block, as block='se', or leave block_options out"
            raise ValueError(f"expected a block for block_options, got block=None: {fix}")
        for level in self.levels:
            if self.gating == "grid" and level.gate and len(level.gate.inputs) == 1:
                got = f"got skip={self.skip!r}, a block with one input: set skip='attention_gate' or gating='up'"
                raise ValueError(f"expected a gate with a gating signal for gating='grid', {got}")
            if level.block and len(level.block.inputs) != 1:
                got = f"{self.block!r} with {len(level.block.inputs)}: set skip={self.block!r} for gates"
                raise ValueError(f"block must be the name of a block with one input, got {got}")

    def _gated(self, steps: int) -> int:
        """Return the checked number of skip connections with a gate; 0 for a network without gates.

        steps: number of skip connections. Raises TypeError or ValueError for an invalid `gated`.
        """
        if self.skip is None:
            return 0 if self.gated is None else contract.integer("gated", self.gated, 0)
        gated = contract.integer("gated", steps if self.gated is None else self.gated)
        if gated > steps:
            raise ValueError(f"gated must be at most {steps}, the number of skips, got {gated}")
        return gated

    # The fields with the types that __post_init__ gives them, for the type checker.

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Return `strides` as a tuple: the stride from each level to the next, per spatial axis."""
        return self.strides   # type: ignore[return-value]

    @property
    def rates(self) -> tuple[float, float]:
        """Return `dropout` as a tuple: the probability after the first and after the second convolution of a level."""
        return self.dropout   # type: ignore[return-value]

    @property
    def gates(self) -> int:
        """Return `gated`, the number of skip connections that have the gate, from the deepest."""
        assert self.gated is not None
        return self.gated

    @property
    def kernel(self) -> int:
        """Return `up_kernel_size`, the kernel size of the transposed convolution, in pixels."""
        assert self.up_kernel_size is not None
        return self.up_kernel_size

    def arguments(self, argument: str, level: int) -> dict[str, Any]:
        """Return a copy of the options of argument "skip" or "block" at a level."""
        return dict((self.skip_options if argument == "skip" else self.block_options)[level])   # type: ignore[index]

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
        return plan.started(plan.weights(self), self.initializer)

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
            if isinstance(name, str) and isinstance(options, list) and all(isinstance(o, dict) for o in options):
                spec = registry.get(name, backend="numpy")
                config[f"{inner}_options"] = [contract.without_idle_rules(spec, o) for o in options]
        return config

    def check_inputs(self, x: Shape, *, channels_last: bool = False) -> None:
        """Raise ValueError unless the shape x is (N, C, *S), or (N, *S, C) with `channels_last`, of any size S >= 1."""
        contract.check_shape(x, self.in_channels, self.spatial_dims, channels_last)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds for x of shape (N, C, *S): convolutions, gates and blocks."""
        space = plan.sizes(self, x[2:])
        total = prod(space[0]) * self.weights["head.weight"].size
        if self.gating_unit:
            total += _cost(self.gating_unit, space[-1])
        for i, level in enumerate(self.levels):
            here, below = space[i], space[min(i + 1, len(space) - 1)]
            wide = tuple(map(mul, below, self.steps[i])) if level.decoder else here   # the map is cropped last
            total += sum(_cost(unit, here) for unit in (*level.encoder, *level.decoder))
            total += sum(_cost(unit, below if unit.transposed else wide) for unit in level.up)
            total += _cost(level.combine, here) if level.combine else 0
            total += level.supervised * prod(here) * level.channels * self.out_channels
            if level.block:
                total += level.block.macs((1, level.channels, *here)) * (2 if level.decoder else 1)
            if level.gate:
                signal = below if self.gating == "grid" else here
                skip = tuple(map(max, here, level.min_size))
                shapes = [(1, c, *size) for c, size in zip(level.gate.inputs, (skip, signal), strict=False)]
                total += level.gate.macs(*shapes)
        return x[0] * total

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> dict[str, Array]:
        """(N, C, *S) -> the coefficients of every gate and block by its path, such as "skip.0", channels first."""
        coefficients: dict[str, Array] = {}
        self._run(x, weights, training, coefficients)
        return coefficients

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, K, *S). Return the output.

        With training=True, running statistics in `weights` are updated in place. Raises ValueError in training with
        dropout, which is random.
        """
        if training and any(self.rates):
            raise ValueError(f"expected dropout=0 for the NumPy network in training, got dropout={self.rates}")
        return self._run(x, weights, training, {})

    def _run(self, x: Array, weights: Mapping[str, Array], training: bool, coefficients: dict[str, Array]) -> Array:
        """Return the output for x, and add the coefficients of every gate and block to `coefficients`, by path."""
        self.check_inputs(x.shape)

        def inner(path: str, block: Any, *inputs: Array) -> Array:
            """Return the output of a gate or block, and add its coefficients; the first input if it is None."""
            if block is None:
                return inputs[0]
            inputs, w = inputs[: len(block.inputs)], without_prefix(path, weights)
            copies = {name: array.copy() for name, array in w.items()}   # attention updates running statistics too
            arrays = by_name(block.attention(*inputs, weights=copies, training=training))
            coefficients.update({join_path(path, name): array for name, array in arrays.items()})
            return np.asarray(block(*inputs, weights=w, training=training))

        def units(path: str, x: Array, units: Sequence[Unit]) -> Array:
            """Return x after convolutions in order."""
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
            s = inner(f"skip.{i}", level.gate, ops.widen(e, level.min_size), g if self.gating == "grid" else up)
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
    """Return a convolution of x, with the norm and activation after it: (N, I, *S) -> (N, O, *T)."""
    x = (ops.transposed if unit.transposed else ops.conv)(x, weights, unit.conv, unit.stride)
    if unit.norm:
        norm = f"norm{unit.part}"
        x = ops.instance_norm(x) if unit.norm == "instance" else ops.batch_norm(x, weights, norm, training)
    if unit.activation == "prelu":
        return ops.prelu(x, weights[f"activation{unit.part}.weight"])
    return ops.relu(x) if unit.activation else x


def _cost(unit: Unit, space: Sequence[int]) -> int:
    """Return the multiply-adds of a convolution. space: size of the output, or of the input if it is transposed."""
    return prod(space) * prod(unit.kernel) * unit.inputs * unit.outputs


def _steps(strides: Any, count: int, dims: int) -> tuple[tuple[int, ...], ...]:
    """Return `count` strides for `dims` spatial axes each from the argument `strides`. Raise ValueError if invalid."""
    steps = list(strides) if isinstance(strides, list | tuple) else [strides] * count
    if len(steps) != count:
        raise ValueError(f"strides must be one number or {count}, one from each level to the next, got {strides!r}")
    checked = []
    for step in steps:
        axes = list(step) if isinstance(step, list | tuple) else [step] * dims
        if len(axes) != dims:
            raise ValueError(f"each of strides must be one number or {dims}, one per spatial axis, got {step!r}")
        checked.append(tuple(contract.integer("strides", s) for s in axes))
        if max(checked[-1]) > 32:   # a file could ask for maps that fit in no memory
            raise ValueError(f"strides must be at most 32, got {max(checked[-1])}")
    return tuple(checked)


def _rates(dropout: Any) -> tuple[float, float]:
    """Return two probabilities from the argument `dropout`. Raise TypeError or ValueError if it is invalid."""
    rates = list(dropout) if isinstance(dropout, list | tuple) else [dropout, 0.0]
    if len(rates) != 2:
        raise ValueError(f"dropout must be one number or two, for the two convolutions of a level, got {dropout!r}")
    for rate in rates:
        if not 0 <= contract.number("dropout", rate) < 1:
            raise ValueError(f"dropout must be in [0, 1), got {rate}")
    return float(rates[0]), float(rates[1])


def _options(name: str, options: Any, count: int, first: int = 0) -> tuple[Mapping[str, Any], ...]:
    """Return the options of each of `count` levels from argument `name`.

    Levels before `first` have no gate and must have no options. Raises TypeError or ValueError if they are invalid.
    """
    if isinstance(options, Mapping):
        return ({},) * first + (dict(options),) * (count - first)
    if not isinstance(options, list | tuple) or len(options) not in (0, count):
        raise ValueError(f"{name} must be one mapping or {count}, one per level, got {options!r}")
    if any(not isinstance(mapping, Mapping) for mapping in options):
        raise TypeError(f"{name} must contain only mappings from argument to value, got {options!r}")
    if any(idle := options[:first]):
        raise ValueError(f"{name} must be {{}} for the {first} finest levels, without a gate, got {list(idle)!r}")
    return tuple(dict(mapping) for mapping in options) or ({},) * count


def _arguments(block: Spec | None) -> dict[str, Any]:
    """Return a block's options, with defaults of None replaced by their values."""
    return {k: v for k, v in block.config().items() if k not in plan.OWN} if block else {}
