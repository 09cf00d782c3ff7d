"""The functions of ops/numpy.py in Keras 3, and what its bodies are made with. Channels last inside: (N, *S, C).

Bodies take `keras` from here and from nowhere else, because triton must be loaded first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..contract import Weight, choice, require, triton_first
from ..moved import moved

triton_first()

import keras as keras  # noqa: E402
from keras import ops  # noqa: E402

from .numpy import EPSILON, MOMENTUM, one_value  # noqa: E402

require("keras", keras.__version__, "3.13.1")   # before it, loading a model could be made to run code

POLICIES = "layer_policies"   # in a config: the dtype policies of layers inside that differ

register = keras.saving.register_keras_serializable(package="attzoo")


def parts_of(layer: Any) -> dict[str, Any]:
    """The layers right inside a layer, by the attribute that holds them; those of a model by their names."""
    parts = layer._flatten_layers(include_self=False, recursive=False)   # Keras tells them in no public way
    names = {id(value): name for name, value in vars(layer).items()}
    is_model = isinstance(layer, keras.Model)
    return {part.name if is_model else names.get(id(part), f"layer {i}"): part for i, part in enumerate(parts)}


def inner_policies(layer: Any) -> dict[str, Any]:
    """Entry for a config: the dtype policies of layers inside, by path, where they differ from the layer's own.

    Quantization sets them. No entry where all are the layer's.
    """
    found: dict[str, Any] = {}

    def walk(path: str, inside: Any) -> None:
        for name, part in parts_of(inside).items():
            if not _equal_policies(part, layer) and not isinstance(part, keras.layers.InputLayer):
                how = getattr(part, "quantization_config", None)
                found[f"{path}{name}"] = {
                    "dtype": keras.dtype_policies.serialize(part.dtype_policy),
                    "quantization_config": keras.saving.serialize_keras_object(how),
                }
            walk(f"{path}{name}/", part)

    walk("", layer)
    return {POLICIES: found} if found else {}


def _equal_policies(layer: Any, other: Any) -> bool:
    a, b = (keras.dtype_policies.serialize(each.dtype_policy) for each in (layer, other))   # maps have no ==
    return bool(a == b)


def with_policies(layer: Any, config: dict[str, Any]) -> Any:
    """A layer as its class makes it, once the layers inside have the dtype policies that a config holds."""
    for path, entry in (config.get(POLICIES) or {}).items():
        part = layer
        for name in path.split("/"):
            part = parts_of(part).get(name)
            if part is None:
                raise ValueError(f"expected a layer {path} in {type(layer).__name__}, for a dtype policy, got none")
        how = keras.saving.deserialize_keras_object(entry["quantization_config"])
        if part.built and how is not None:
            part.quantize(config=how)
        elif how is not None:
            part.quantization_config = how
        part.dtype_policy = keras.dtype_policies.get(entry["dtype"])
    return layer


def data_format_of(given: str | None) -> str:
    """A data format, Keras's own where none is given."""
    found = keras.config.image_data_format() if given is None else given
    return str(choice("data_format", found, ("channels_last", "channels_first")))


class Conv(keras.layers.Layer):
    """(N, *S, I) -> (N, *S, O), or (N, *S // k, O) where mode is "strided".

    Mode "zeros" or "circular" slides an odd kernel over x padded that way; "strided" strides by the kernel and drops
    what is left over. The kernel is kept as the spec has it, (O, I, *k), or (k,) where O = I = 1. keras.layers.Conv2D
    keeps (*k, I, O), and with one output channel cannot be trained in float64 or half precision on Keras's torch
    backend on a CPU.
    """

    def __init__(self, weight: Weight, bias: Weight | None, mode: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.starts = weight, bias
        self.mode = mode

    def build(self, input_shape: Any) -> None:
        weight, bias = self.starts
        self.weight = self.add_weight(name="weight", shape=weight.shape, initializer=start(weight))
        self.bias = bias and self.add_weight(name="bias", shape=bias.shape, initializer=start(bias))

    def call(self, x: Any) -> Any:
        shape = self.starts[0].shape
        if len(shape) > 1:
            kernel = ops.transpose(self.weight, (*range(2, len(shape)), 1, 0))
        else:
            kernel = self.weight[:, None, None]
        strides: int | tuple[int, ...] = 1
        padding = "same"
        if self.mode == "strided":
            strides, padding = shape[2:], "valid"
        elif self.mode == "circular":
            half, length, padding = shape[-1] // 2, x.shape[1], "valid"
            x = ops.concatenate([x[:, length - half :], x, x[:, :half]], axis=1)
        y = over_batch(partial(ops.conv, strides=strides, padding=padding, data_format="channels_last"), x, kernel)
        return y if self.bias is None else y + self.bias


def over_batch(layer: Callable[..., Any], x: Any, *args: Any) -> Any:
    """layer(x, *args), where x may be an empty batch, which convolutions of Keras 3.13 and of oneDNN refuse.

    The layer is then given one sample of zeros, and its output for that is dropped.
    """
    if x.shape[0] != 0:
        return layer(x, *args)
    return layer(ops.pad(x, ((0, 1), *((0, 0),) * (x.ndim - 1))), *args)[:0]


class Identity(keras.layers.Identity):
    """keras.layers.Identity, called like the batch norm that it stands for."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        return x


@register
class BatchNorm(keras.layers.Layer):
    """(N, *S, C) -> (N, *S, C): torch's batch norm, whose running variance is the unbiased one.

    Statistics are kept and taken in float32 at least. Raises ValueError in training on one value per channel.
    """

    def __init__(self, gamma_initializer: Any = "ones", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)

    def build(self, input_shape: Any) -> None:
        shape = (input_shape[-1],)
        self.weight = self.add_weight(name="weight", shape=shape, initializer=self.gamma_initializer, autocast=False)
        self.bias = self.add_weight(name="bias", shape=shape, initializer="zeros", autocast=False)
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros", trainable=False, autocast=False)
        self.var = self.add_weight(name="var", shape=shape, initializer="ones", trainable=False, autocast=False)

    def call(self, x: Any, training: bool | None = None) -> Any:
        z = ops.cast(x, wide(x.dtype))
        weight, bias, center, var = (ops.cast(v, z.dtype) for v in (self.weight, self.bias, self.mean, self.var))
        if training and self.trainable:   # a frozen norm rests, as Keras's own does
            axes = tuple(range(x.ndim - 1))
            now = mean(z, axes)
            off = z - now
            spread = mean(ops.square(off), axes)
            unbiased = spread * self.unbiased(x)
            self.mean.assign(self.mean + MOMENTUM * (ops.cast(now, self.mean.dtype) - self.mean))
            self.var.assign(self.var + MOMENTUM * (ops.cast(unbiased, self.var.dtype) - self.var))
            return ops.cast(off * (weight * ops.rsqrt(spread + EPSILON)) + bias, x.dtype)
        scale = weight * ops.rsqrt(var + EPSILON)
        return ops.cast(z * scale + (bias - center * scale), x.dtype)   # two passes over x, not three

    def unbiased(self, x: Any) -> Any:
        """The factor n / (n - 1) for the n values of each channel."""
        if all(size is not None for size in x.shape):
            n = x.shape[0]
            for size in x.shape[1:-1]:
                n *= size
            if n == 1:
                raise one_value(x.shape)
            return n / (n - 1)
        n = ops.cast(ops.size(x[..., 0]), "float32")
        return n / ops.maximum(n - 1, 1)   # n = 1 has no variance to scale

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"gamma_initializer": keras.initializers.serialize(self.gamma_initializer)}


def in_dtype_of(x: Any, variable: Any) -> Any:
    """A variable in the dtype of x: where mixed precision is on, Keras casts variables only inside a layer's call."""
    return ops.cast(variable, x.dtype)


def find(layer: Any, name: str) -> Any:
    """The variable that holds canonical `name`: the same path, but for what Keras calls a kernel."""
    return getattr(*locate(layer, name))


def locate(layer: Any, name: str) -> tuple[Any, str]:
    """The layer that holds canonical `name`, and its word for it."""
    path, _, leaf = name.rpartition(".")
    if isinstance(layer, keras.Model):   # its layers know the beginnings of paths
        beginnings = [(path_of(each), each) for each in layer.layers if f"{path}.".startswith(f"{path_of(each)}.")]
        beginning, layer = max(beginnings, key=lambda each: len(each[0]))
        path = path[len(beginning) + 1 :]
    for step in filter(None, path.split(".")):
        layer = getattr(layer, "output_" if step == "output" else step)   # Keras has an `output` of its own
    return layer, "kernel" if leaf == "weight" and hasattr(layer, "kernel") else leaf


def named(layer: Any, path: str) -> Any:
    """The layer, told its canonical path: Keras on torch allows no dots in names. It remembers its settings, too."""
    layer.canonical, layer.made = path, described(layer)
    return layer


def described(layer: Any) -> str:
    """A layer's kind and those of its settings that decide what it computes, as text."""
    try:
        config = {"mode": layer.mode} if isinstance(layer, Conv) else layer.get_config()
    except NotImplementedError:   # a third party's
        config = {}
    ends = ("name", "trainable", "dtype", "initializer", "regularizer", "constraint", "quantization_config")
    skipped = ("lora_", POLICIES)
    settings = [f"{k}={v!r}" for k, v in config.items() if not k.endswith(ends) and not k.startswith(skipped)]
    return f"{type(layer).__name__}({', '.join(settings)})"


def path_of(layer: Any) -> str:
    """A layer's canonical path, where it was told, else its name."""
    return str(getattr(layer, "canonical", layer.name))


def start(weight: Weight | None) -> Any:
    """The initialiser that draws a weight's start; Keras's zeros where there is no weight."""
    if weight is None:
        return keras.initializers.Zeros()
    if weight.start == "uniform":
        return keras.initializers.RandomUniform(weight.center - weight.scale, weight.center + weight.scale)
    if weight.start == "normal":
        return keras.initializers.RandomNormal(weight.center, weight.scale)
    if weight.start == "orthogonal":
        return keras.initializers.Orthogonal(weight.scale)
    return keras.initializers.Constant(weight.center)


def restart(variable: Any, weight: Weight) -> None:
    """Draw a variable anew from another start."""
    drawn = start(weight)((weight.size // weight.shape[0], weight.shape[0]), dtype=variable.dtype)   # inputs x outputs
    drawn = drawn if variable.name == "kernel" else ops.transpose(drawn)
    variable.assign(ops.reshape(drawn, variable.shape))


def space(x: Any, channels_last: bool) -> tuple[int, ...]:
    """The spatial axes of x."""
    return tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))


def avg_pool(x: Any, channels_last: bool) -> Any:
    """Mean over space: (N, *S, C) -> (N, C)."""
    return mean(x, space(x, channels_last))


def max_pool(x: Any, channels_last: bool) -> Any:
    """Maximum over space, its gradient shared by ties: (N, *S, C) -> (N, C)."""
    return amax(x, space(x, channels_last))


def mean(x: Any, axis: Any, keepdims: bool = False) -> Any:
    """keras.ops.mean, which takes float64 down to float32 on JAX and torch."""
    if keras.backend.backend() == "tensorflow" or keras.backend.standardize_dtype(x.dtype) != "float64":
        return ops.mean(x, axis=axis, keepdims=keepdims)
    size, n = ops.shape(x), 1
    for a in (axis,) if isinstance(axis, int) else axis:
        n = n * size[a]
    return ops.sum(x, axis=axis, keepdims=keepdims) / (n if isinstance(n, int) else ops.cast(n, x.dtype))


def wide(dtype: Any) -> str:
    """The dtype to take statistics and coordinates in: float64 where that is asked for, else float32."""
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def amax(x: Any, axis: Any, keepdims: bool = False) -> Any:
    """keras.ops.max, which refuses an empty batch on TensorFlow and torch; its maximum is as empty as its sum."""
    largest = ops.sum if x.shape[0] == 0 else ops.max
    return largest(x, axis=axis, keepdims=keepdims)


def expand(s: Any, x: Any, channels_last: bool) -> Any:
    """One coefficient per channel, shaped to multiply x: (N, C) -> (N, 1.., C), or (N, C, 1..)."""
    ones = (1,) * (x.ndim - 2)
    shape = (*ones, s.shape[-1]) if channels_last else (s.shape[-1], *ones)
    return ops.reshape(s, (-1, *shape))


def to_last(x: Any, channels_last: bool) -> Any:
    """(N, C, *S) -> (N, *S, C): TensorFlow on a CPU has no channels-first convolution."""
    return x if channels_last else ops.moveaxis(x, 1, -1)


def sizes(x: Any) -> tuple[Any, ...]:
    """The spatial sizes of (N, *S, C): integers where they are known, tensors where they are not."""
    return tuple(ops.shape(x))[1:-1]


def from_last(x: Any, channels_last: bool) -> Any:
    """The way back: (N, *S, C) -> (N, C, *S)."""
    return x if channels_last else ops.moveaxis(x, -1, 1)


relu, sigmoid, stack, multiply = ops.relu, ops.sigmoid, ops.stack, ops.multiply


def hard_sigmoid(z: Any) -> Any:
    """relu6(z + 3) / 6."""
    return ops.relu6(z + 3) / 6


GATES: dict[str, Callable[[Any], Any]] = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def resize(x: Any, size: Sequence[Any], interpolation: str, align_corners: bool) -> Any:
    """Resample the spatial axes to `size`, one axis after the other: (N, *S, C) -> (N, *size, C).

    Keras's own resize takes no volumes, works in float32 only, and cannot be exported with unknown sizes. The same
    size is x itself, where sizes are known.
    """
    if tuple(x.shape[1:-1]) == tuple(size):
        return x
    for axis, new in enumerate(size, start=1):
        old = ops.shape(x)[axis]
        if interpolation == "nearest":
            x = ops.take(x, nearest(old, new), axis)
        else:
            low, high, fraction = taps(old, new, align_corners, wide(x.dtype))
            fraction = ops.reshape(ops.cast(fraction, x.dtype), (-1, *(1,) * (x.ndim - 1 - axis)))
            x = ops.take(x, low, axis) * (1 - fraction) + ops.take(x, high, axis) * fraction
    return x


def nearest(old: Any, new: Any) -> Any:
    """For each of `new` positions the old one nearest to its centre, in exact integers."""
    return (2 * ops.arange(new, dtype="int32") + 1) * old // (2 * new)


def taps(old: Any, new: Any, align_corners: bool, dtype: str) -> tuple[Any, Any, Any]:
    """For each of `new` positions the two old ones that it lies between, and how far towards the second."""
    i = ops.cast(ops.arange(new, dtype="int32"), dtype)
    old, new = ops.cast(old, dtype), ops.cast(new, dtype)
    source = i * ((old - 1) / ops.maximum(new - 1, 1)) if align_corners else (i + 0.5) * (old / new) - 0.5
    source = ops.clip(source, 0, old - 1)
    low = ops.floor(source)
    return ops.cast(low, "int32"), ops.cast(ops.minimum(low + 1, old - 1), "int32"), source - low


def __getattr__(name: str) -> Any:
    return moved(__name__, name, {"Block": "attzoo.blocks.keras.Block"})
