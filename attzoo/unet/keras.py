"""The U-Net in Keras 3, for all backends: a functional model whose layers store their canonical paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from .. import registry
from ..contract import Spec
from ..hints import check_arguments
from ..ops import keras as ops
from ..ops import keras_layers
from ..ops.keras import keras
from . import layers, spec
from .plan import Level, Unit
from .settings import CHANNELS, Arguments

Make = Callable[..., Any]   # (layer's class, *arguments, name=path, **arguments) -> layer, in the network's dtype


@ops.register
class UNet(keras.Model):
    """A U-Net: (N, *S, C) -> (N, *S, K), or channels first by data_format. Arguments and errors as `spec.UNet`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise TypeError for an unknown keyword argument. Checked here, because keras.Model allows no further base."""
        check_arguments(cls, kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: tuple[int, ...] = CHANNELS,
        *,
        data_format: str | None = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[Arguments],
    ) -> None:
        net = spec.UNet(in_channels, out_channels, channels, **kwargs)
        data_format = ops.data_format_of(data_format)
        policy = keras.dtype_policies.get(dtype)
        ops.check_policy(policy)
        inputs, outputs = _build(net, data_format == "channels_last", policy)
        super().__init__(inputs=inputs, outputs=outputs, name=name, trainable=trainable)
        self.spec, self.data_format = net, data_format
        self.dtype_policy = policy

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return the output, logits or with head="sigmoid" probabilities. Raise ValueError for another shape of x."""
        (x,) = keras.tree.flatten(inputs)
        self.spec.check_inputs(x.shape, channels_last=self.data_format == "channels_last")
        return super().call(inputs, training=training, mask=mask)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments and settings of sublayers. Raise ValueError for a changed layer, which has no entry."""
        keras_layers.check_unchanged(self)
        config = {"name": self.name, "trainable": self.trainable, "data_format": self.data_format}
        config |= {"dtype": keras.dtype_policies.serialize(self.dtype_policy)} | self.spec.config()
        return config | keras_layers.inner_settings(self)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> UNet:
        """Return a network from the result of `get_config` of this or an older version."""
        net = cls(**spec.UNet.upgraded(keras_layers.without_inner_settings(config)))
        return keras_layers.with_inner_settings(net, config)


def _build(net: spec.UNet, channels_last: bool, policy: Any) -> tuple[Any, Any]:
    """Return the symbolic input and output of the functional model of a network.

    channels_last: the layout of both. policy: the dtype policy of all layers.
    """
    unknown_sizes = (None,) * net.spatial_dims
    shape = (*unknown_sizes, net.in_channels) if channels_last else (net.in_channels, *unknown_sizes)
    inputs = x = keras.Input(shape, dtype=policy.compute_dtype)

    def make(cls: Any, *args: Any, name: str, **kwargs: Any) -> Any:
        """Return a layer with the dtype policy of the network and this canonical path."""
        return keras_layers.named(cls(*args, name=name.replace(".", "_"), dtype=policy, **kwargs), name)

    if not channels_last:
        axes = range(2, 2 + net.spatial_dims)
        x = make(keras.layers.Permute, (*axes, 1), name="channels_last")(x)
    y = _output(make, net, *_decode(make, net, _encode(make, net, x)))
    if not channels_last:
        axes = range(1, net.spatial_dims + 1)
        y = make(keras.layers.Permute, (net.spatial_dims + 1, *axes), name="channels_first")(y)
    return inputs, y


def _encode(create_layer: Make, net: spec.UNet, x: Any) -> list[Any]:
    """Return the output of each level of the encoder for the input x, from the finest.

    create_layer: creates a layer, see `_build`.
    """
    skips = []
    for i, level in enumerate(net.levels):
        if level.pool:
            x = create_layer(layers.MaxPool, level.stride, name=f"down.{i}")(x)
        x = _units(create_layer, net, f"encoder.{i}", level.encoder, x, level.block)
        skips.append(x)
    return skips


def _decode(create_layer: Make, net: spec.UNet, skips: list[Any]) -> tuple[Any, list[Any]]:
    """Return the output of the decoder, and the logits of each supervised level, from the coarsest.

    create_layer: creates a layer, see `_build`. skips: the outputs of the encoder, from the finest level.
    """
    x, heads = skips[-1], []
    g = _units(create_layer, net, "gating", [net.gating_unit], x) if net.gating_unit else x
    for i in reversed(range(len(skips) - 1)):
        skip, level = skips[i], net.levels[i]
        up = create_layer(layers.Crop, 0, 1, name=f"up.{i}.crop")([_up(create_layer, net, i, level, x), skip])
        s = _gate(create_layer, net, i, level, skip, g if net.gating == "grid" else up)
        ordered_inputs = [s, up] if net.concat == "skip_first" else [up, s]
        concatenated = create_layer(keras.layers.Concatenate, name=f"concat.{i}")(ordered_inputs)
        g = x = _units(create_layer, net, f"decoder.{i}", level.decoder, concatenated, level.block)
        if level.supervised:
            heads.append(_linear(create_layer, net, f"supervision.{i}")(x))
    return x, heads


def _output(create_layer: Make, net: spec.UNet, x: Any, heads: list[Any]) -> Any:
    """Return the output of the network for the results x and `heads` of `_decode`.

    create_layer: creates a layer, see `_build`.
    """
    if heads:
        maps = [
            create_layer(layers.ResizeLike, name=f"supervision.{i}.resize")([head, x])
            for i, head in enumerate(reversed(heads))
        ]
        x = create_layer(keras.layers.Concatenate, name="supervision")(maps) if len(maps) > 1 else maps[0]
    y = _linear(create_layer, net, "head")(x)
    return create_layer(keras.layers.Activation, "sigmoid", name="sigmoid")(y) if net.head == "sigmoid" else y


def _up(create_layer: Make, net: spec.UNet, i: int, level: Level, x: Any) -> Any:
    """Return x, the output of level i + 1, upsampled to level i. create_layer: creates a layer, see `_build`."""
    step = net.steps[i]
    if level.interpolation == "nearest":
        Repeat, dims = getattr(keras.layers, f"UpSampling{net.spatial_dims}D"), net.spatial_dims
        x = create_layer(Repeat, step if dims > 1 else step[0], name=f"up.{i}.nearest", **_format(dims))(x)
    elif level.interpolation:
        x = create_layer(layers.Upsample, step, name=f"up.{i}.linear")(x)
    return _units(create_layer, net, f"up.{i}", level.up, x)


def _gate(create_layer: Make, net: spec.UNet, i: int, level: Level, skip: Any, g: Any) -> Any:
    """Return the skip connection of level i after its gate, with gating signal g; `skip` itself without a gate.

    create_layer: creates a layer, see `_build`.
    """
    if not level.gate:
        return skip
    coarse = max(level.min_size) > 1
    widened = create_layer(layers.Widen, level.min_size, name=f"skip.{i}.widen")(skip) if coarse else skip
    s = _block(create_layer, net, f"skip.{i}", level.gate, *(widened, g)[: len(level.gate.inputs)])
    s = create_layer(layers.Crop, 0, 1, name=f"skip.{i}.crop")([s, skip]) if coarse else s
    return _units(create_layer, net, f"combine.{i}", [level.combine], s) if level.combine else s


def _units(
    create_layer: Make, net: spec.UNet, path: str, units: Sequence[Unit], x: Any, block: Spec | None = None
) -> Any:
    """Return x after convolutions in order, each with its norm, activation and dropout, and after the block.

    create_layer: creates a layer, see `_build`. path: path of the level.
    """
    norms = {"batch": ops.BatchNorm, "instance": layers.InstanceNorm}
    for unit in units:
        x = _conv(create_layer, net, path, unit, x)
        if unit.norm:
            initializers = (
                {"gamma_initializer": _start(net, f"{path}.norm{unit.part}.weight")} if unit.norm == "batch" else {}
            )
            x = create_layer(norms[unit.norm], name=f"{path}.norm{unit.part}", **initializers)(x)
        if unit.activation == "prelu":
            x = create_layer(layers.PReLU, name=f"{path}.activation{unit.part}")(x)
        elif unit.activation:
            x = create_layer(keras.layers.ReLU, name=f"{path}.relu{unit.part}")(x)
        if unit.dropout:
            x = create_layer(keras.layers.Dropout, unit.dropout, name=f"{path}.dropout{unit.part}")(x)
    return _block(create_layer, net, f"{path}.block", block, x) if block else x


def _conv(create_layer: Make, net: spec.UNet, path: str, unit: Unit, x: Any) -> Any:
    """Return the convolution of a unit applied to x. path: that of the level. create_layer: see `_build`."""
    name, dims = f"{path}.{unit.conv}", net.spatial_dims
    kernel_initializer, bias_initializer = _start(net, f"{name}.weight"), _start(net, f"{name}.bias")
    initializers = {"kernel_initializer": kernel_initializer, "bias_initializer": bias_initializer}
    if max(unit.kernel) == max(unit.stride) == 1 and not unit.transposed:
        return create_layer(keras.layers.Dense, unit.outputs, name=name, **initializers)(x)
    layer_options = {"padding": "valid", "data_format": "channels_last", "name": name} | initializers
    if unit.transposed:
        Layer = getattr(keras.layers, f"Conv{dims}DTranspose")
        padded = x
        if any(k - s < pixels for k, s, pixels in zip(unit.kernel, unit.stride, unit.padding, strict=True)):
            # The last kernel ends before the last pixel of the output, which has only the bias.
            Pad, pixels = getattr(keras.layers, f"ZeroPadding{dims}D"), [(0, 1)] * dims if dims > 1 else (0, 1)
            padded = create_layer(Pad, pixels, name=f"{name}.pad", **_format(dims))(x)
        uncropped = create_layer(Layer, unit.outputs, unit.kernel, unit.stride, **layer_options)(padded)
        return create_layer(layers.Crop, unit.padding, unit.stride, name=f"{name}.crop")([uncropped, x])
    Layer = getattr(layers, f"Conv{dims}D")
    if max(unit.stride) == 1:
        return create_layer(Layer, unit.outputs, unit.kernel, **layer_options | {"padding": "same"})(x)
    padding = [(pixels, pixels) for pixels in unit.padding]   # "same" would pad a strided convolution at the end only
    Pad = getattr(keras.layers, f"ZeroPadding{dims}D")
    x = create_layer(Pad, padding if dims > 1 else padding[0], name=f"{name}.pad", **_format(dims))(x)
    return create_layer(Layer, unit.outputs, unit.kernel, unit.stride, **layer_options)(x)


def _linear(create_layer: Make, net: spec.UNet, path: str) -> Any:
    """Return the dense layer with this path, to the output channels of a network.

    create_layer: creates a layer, see `_build`.
    """
    initializers = _start(net, f"{path}.weight"), _start(net, f"{path}.bias")
    return create_layer(
        keras.layers.Dense,
        net.out_channels,
        kernel_initializer=initializers[0],
        bias_initializer=initializers[1],
        name=path,
    )


def _block(create_layer: Make, net: spec.UNet, path: str, block: Spec, *inputs: Any) -> Any:
    """Return the output of a block for these inputs. Its weights begin with the initialization of the network.

    create_layer: creates a layer, see `_build`. path: path of the block.
    """
    layer = create_layer(registry.class_of(block, "keras"), **block.config(), data_format="channels_last", name=path)
    y = layer(*inputs)
    for name, block_weight in block.weights.items():
        weight = net.weights[f"{path}.{name}"]
        if weight != block_weight:
            ops.reinitialize(ops.find(layer, name), weight)
    return y


def _start(net: spec.UNet, name: str) -> Any:
    """Return the Keras initializer of the array with canonical `name`."""
    return ops.initialize(net.weights[name])


def _format(dims: int) -> dict[str, str]:
    """Return the keyword arguments of a Keras layer with `dims` spatial axes: data_format, or none for 1-D layers."""
    return {} if dims == 1 else {"data_format": "channels_last"}
