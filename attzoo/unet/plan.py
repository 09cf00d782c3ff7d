"""The U-Net as a list of levels, from the finest, independent of the framework that builds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Final

from .. import registry
from ..contract import Spec, Weight, batch_norm, fan_in_uniform, prefixed
from ..hints import nearest
from .settings import Settings

SET_BY_NETWORK: Final = ("channels", "gating_channels", "spatial_dims")   # arguments of a block that the network sets


@dataclass(frozen=True, slots=True)
class Unit:
    """A convolution with the norm, activation and dropout after it, in this order.

    part: end of the names of its layers, as "1" in conv1 and norm1. inputs, outputs: numbers of channels.
    kernel, stride: in pixels, per spatial axis. norm: "batch", "instance" or None. activation: "relu", "prelu" or None.
    dropout: probability. transposed: whether the convolution is transposed; its name then begins with `transpose`.
    """

    part: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    norm: str | None = None
    activation: str | None = "relu"
    dropout: float = 0.0
    transposed: bool = False

    @property
    def conv(self) -> str:
        """Return the name of the convolution within the level, such as "conv1"."""
        return f"transpose{self.part}" if self.transposed else f"conv{self.part}"

    @property
    def padding(self) -> tuple[int, ...]:
        """Return the padding (k - 1) // 2 per axis, in pixels; a transposed convolution crops as much."""
        return tuple((k - 1) // 2 for k in self.kernel)

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by name within the level."""
        channels = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        kernel = self.kernel if self.transposed or prod(self.kernel) > 1 else ()
        weights = fan_in_uniform(self.conv, (*channels, *kernel), bias=False)
        bound = weights[f"{self.conv}.weight"].scale
        weights[f"{self.conv}.bias"] = Weight((self.outputs,), "uniform", bound)
        if self.norm == "batch":
            weights |= batch_norm(f"norm{self.part}", self.outputs)
        if self.activation == "prelu":
            weights[f"activation{self.part}.weight"] = Weight((1,), "constant", center=0.25)
        return weights


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the encoder and, except at the deepest, of the decoder.

    channels: channels of the output. stride: in pixels per spatial axis, from the next finer level; 1 at the finest.
    pool: whether max pooling has the stride; if False, the first convolution has it.
    encoder, decoder: convolutions, in order. The deepest level has no decoder, `up`, `interpolation` and `gate`.
    up: convolutions that upsample the output of the next coarser level, or follow its upsampling; may be empty.
    interpolation: "nearest" or "linear" upsampling before `up`; None if a transposed convolution in `up` upsamples.
    gate: spec of the gate on the skip connection, or None. combine: the convolution after the gate, or None.
    block: spec of the block after encoder and decoder, or None. supervised: whether the head uses this level too.
    """

    channels: int
    stride: tuple[int, ...]
    pool: bool
    encoder: tuple[Unit, ...]
    decoder: tuple[Unit, ...] = ()
    up: tuple[Unit, ...] = ()
    interpolation: str | None = None
    gate: Spec | None = None
    combine: Unit | None = None
    block: Spec | None = None
    supervised: bool = False

    @property
    def min_size(self) -> tuple[int, ...]:
        """Return the smallest size of the gate's input x, in pixels per spatial axis; a smaller x is padded to it."""
        return getattr(self.gate, "strides", (1,) * len(self.stride))


def levels(net: Settings) -> list[Level]:
    """Return the levels of a network, from the finest."""
    return [_level(net, i) for i in range(len(net.channels))]


def gating(net: Settings) -> Unit | None:
    """Return the unit that computes the gating signal of grid gates from the deepest level; None without grid gates."""
    deepest_channels = net.channels[-1]
    return _pointwise(net, deepest_channels, deepest_channels) if net.gating == "grid" else None


def initialized_by(weights: Mapping[str, Weight], initializer: str) -> dict[str, Weight]:
    """Return the weights with the initialization of the network's argument `initializer`, by canonical name.

    Biases are zero, scales of norms are 1, and matrices and kernels follow the rule of `_map`. "torch" changes nothing.

    Source: "kaiming", "xavier", "normal" and "orthogonal", with scales of norms from normal(1, 0.02), as
    ozan-oktay/Attention-Gated-Networks@eee4881, models/networks_other.py, init_weights.
    """
    if initializer == "torch":
        return dict(weights)
    spread = 0.0 if initializer == "glorot" else 0.02

    def initialized(name: str, weight: Weight) -> Weight:
        """Return the weight with its new initialization."""
        path, _, attribute = name.rpartition(".")
        if attribute == "weight" and len(weight.shape) > 1:
            return _map(weight.shape, initializer)
        if attribute == "weight" and f"{path}.mean" in weights:
            return Weight(weight.shape, "normal", spread, 1.0) if spread else Weight(weight.shape, "constant", 0, 1)
        return Weight(weight.shape, "constant") if attribute == "bias" else weight

    return {name: initialized(name, weight) for name, weight in weights.items()}


def _map(shape: tuple[int, ...], initializer: str) -> Weight:
    """Return the `Weight` of a matrix or convolution kernel, (O, I, *k), for an `initializer`."""
    fan_in, fan_out = prod(shape[1:]), shape[0] * prod(shape[2:])
    match initializer:
        case "kaiming":
            return Weight(shape, "normal", (2 / fan_in) ** 0.5)
        case "xavier":
            return Weight(shape, "normal", (2 / (fan_in + fan_out)) ** 0.5)
        case "glorot":
            return Weight(shape, "uniform", (6 / (fan_in + fan_out)) ** 0.5)
        case "orthogonal":
            return Weight(shape, "orthogonal", 1.0)
    return Weight(shape, "normal", 0.02)


def sizes(net: Settings, space: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the spatial size of every level for an input of size `space`; strides round up."""
    level_sizes, size = [], tuple(space)
    for step in ((1,) * len(size), *net.steps):
        size = tuple(-(-n // s) for n, s in zip(size, step, strict=True))
        level_sizes.append(size)
    return level_sizes


def weights(net: Settings, levels: Sequence[Level]) -> dict[str, Weight]:
    """Return every array of a network by canonical name, with the initialization of single units and blocks.

    levels: the result of `levels`.
    """
    arrays: dict[str, Weight] = {}
    for i, level in enumerate(levels):
        arrays |= _units(f"encoder.{i}", level.encoder) | _inner(f"encoder.{i}.block", level.block)
    if unit := gating(net):
        arrays |= _units("gating", (unit,))
    for i, level in reversed(list(enumerate(levels[:-1]))):
        arrays |= _units(f"up.{i}", level.up) | _inner(f"skip.{i}", level.gate)
        arrays |= _units(f"combine.{i}", (level.combine,) if level.combine else ())
        arrays |= _units(f"decoder.{i}", level.decoder) | _inner(f"decoder.{i}.block", level.block)
    classes, supervised = net.out_channels, [i for i, level in enumerate(levels) if level.supervised]
    for i in supervised:
        arrays |= fan_in_uniform(f"supervision.{i}", (classes, net.channels[i]), bias=True)
    head_inputs = classes * len(supervised) or net.channels[0]
    return arrays | fan_in_uniform("head", (classes, head_inputs), bias=True)


def _units(prefix: str, units: Sequence[Unit]) -> dict[str, Weight]:
    """Return the arrays of units by name with a prefix."""
    return {name: w for unit in units for name, w in prefixed(prefix, unit.weights).items()}


def _inner(prefix: str, spec: Spec | None) -> dict[str, Weight]:
    """Return the arrays of the gate or block with this spec, by name with a prefix; {} for None."""
    return prefixed(prefix, spec.weights) if spec else {}


def _level(net: Settings, i: int) -> Level:
    """Return level i of a network; 0 is the finest."""
    channels, step = net.channels[i], (1,) * net.spatial_dims if i == 0 else net.steps[i - 1]
    channels_above = net.channels[i - 1] if i else net.in_channels
    pool = net.down == "max_pool" and i > 0
    encoder = _convs(net, channels_above, channels, (1,) * net.spatial_dims if pool else step)
    block = _create(net.block, net.arguments("block", i), (channels,), net.spatial_dims)
    if i == len(net.channels) - 1:
        return Level(channels, step, pool, encoder, block=block)
    up = _up(net, i)
    upsampled_channels = up[-1].outputs if up else net.channels[i + 1]
    gated = net.skip is not None and i >= len(net.channels) - 1 - net.gates
    signal = net.channels[i + 1] if net.gating == "grid" else upsampled_channels
    inputs = channels + upsampled_channels
    # MONAI's size, whatever its argument kernel_size.
    kernel, no_stride = (3,) * net.spatial_dims, (1,) * net.spatial_dims
    merge = Unit("1", inputs, channels, kernel, no_stride, norm="instance", activation="prelu", dropout=net.rates[0])
    return Level(
        channels,
        step,
        pool,
        encoder,
        decoder=(merge,) if net.decoder == "merge" else _convs(net, inputs, channels, (1,) * net.spatial_dims),
        up=up,
        interpolation=None if net.up == "transpose" else net.up,
        gate=_create(net.skip, net.arguments("skip", i), (channels, signal), net.spatial_dims) if gated else None,
        combine=_pointwise(net, channels, channels) if gated and net.combine else None,
        block=block,
        supervised=net.deep_supervision,
    )


def _convs(net: Settings, inputs: int, outputs: int, step: tuple[int, ...]) -> tuple[Unit, ...]:
    """Return the two convolutions of a level of a network, from `inputs` to `outputs` channels.

    step: stride of the first, per spatial axis.
    """
    first_unit = _unit(net, "1", inputs, outputs, stride=step, norm=net.norm, dropout=net.rates[0])
    return first_unit, _unit(net, "2", outputs, outputs, norm=net.norm, dropout=net.rates[1])


def _up(net: Settings, i: int) -> tuple[Unit, ...]:
    """Return the convolutions that follow or perform the upsampling from level i + 1 to level i."""
    inputs, outputs, step = net.channels[i + 1], net.channels[i], net.steps[i]
    conv = _unit(net, "", inputs, outputs, norm=net.norm)
    if net.up != "transpose":
        return (conv,) if net.up_conv else ()
    size = net.kernel
    kernel = tuple(size if s > 1 or size % 2 else 1 for s in step)   # an even kernel has no central pixel
    if net.up_conv:
        return Unit("", inputs, inputs, kernel, step, activation=None, transposed=True), conv
    return (Unit("", inputs, outputs, kernel, step, norm=net.norm, transposed=True),)


def _unit(net: Settings, part: str, inputs: int, outputs: int, stride: tuple[int, ...] = (), **rest: Any) -> Unit:
    """Return a unit with the kernel size of the network.

    Args:
        net: the arguments of the network.
        part: as in `Unit`.
        inputs: number of input channels.
        outputs: number of output channels.
        stride: per spatial axis; () for 1.
        rest: further fields of `Unit`.
    """
    dims = net.spatial_dims
    return Unit(part, inputs, outputs, (net.kernel_size,) * dims, stride or (1,) * dims, **rest)


def _pointwise(net: Settings, inputs: int, outputs: int) -> Unit:
    """Return the unit of a 1x1 convolution with the norm of the network, from `inputs` to `outputs` channels."""
    return Unit("", inputs, outputs, (1,) * net.spatial_dims, (1,) * net.spatial_dims, norm=net.norm)


def _create(
    name: str | None, arguments: dict[str, Any], channels: tuple[int, ...], dims: int
) -> Spec | None:
    """Return the spec of block `name`, or None if the name is None.

    Raises ValueError for the name of a network, an unknown option or one that the network sets, and the block's errors.

    Args:
        name: name of the block, or None.
        arguments: the user's options of the block.
        channels: number of channels of the input and, for a gate, of the gating signal.
        dims: number of spatial axes.
    """
    if name is None:
        return None
    cls = registry.get(name, backend="numpy")
    if name in registry.NETWORKS:
        raise ValueError(f"skip and block must be names of blocks, got {name!r}, the name of a network")
    for argument in SET_BY_NETWORK:
        if argument in arguments:
            expected = f"expected options of {name!r} without {argument}, which the network sets"
            raise ValueError(f"{expected}, got {arguments}")
    field_names = dict.fromkeys(field.name for field in fields(cls))   # type: ignore[arg-type]
    if "spatial_dims" in field_names:
        arguments["spatial_dims"] = dims
    if "gating_channels" in field_names:
        arguments["gating_channels"] = channels[-1]
    if unknown := sorted(arguments.keys() - field_names.keys()):
        options = ", ".join(option for option in field_names if option not in SET_BY_NETWORK)
        hint = nearest(unknown[0], field_names) or "."
        raise ValueError(f"{name} has no option {', '.join(map(repr, unknown))}{hint} Known: {options}")
    return cls(channels[0], **arguments)   # type: ignore[call-arg]
