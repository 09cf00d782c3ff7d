"""ops/numpy.py in Keras 3, and what every Keras body shares: `Block`. Channels last inside: (N, *S, C).

Bodies take `keras` from here and from nowhere else, because triton must be loaded first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import partial, wraps
from inspect import signature
from typing import Any

from ..contract import AnySpec, Weight, choice, require, triton_first, without_idle_rules
from ..hints import arguments_of, unknown_argument

triton_first()

import keras as keras  # noqa: E402
from keras import ops  # noqa: E402

from .numpy import EPSILON, MOMENTUM, one_value  # noqa: E402

require("keras", keras.__version__, "3.13.1")   # before it, loading a model could be made to run code

POLICIES = "layer_policies"   # in a config: the dtype policies of layers inside that differ

register = keras.saving.register_keras_serializable(package="attzoo")


class Block(keras.layers.Layer):
    """What every body has: its spec, layers that start as the spec says, refusals, and y = x * attention(x)."""

    def __init__(self, spec: AnySpec, data_format: str | None = None, **kwargs: Any) -> None:
        try:
            super().__init__(**kwargs)
        except ValueError as err:
            owners: tuple[type[Any], ...] = (type(self), Block, keras.layers.Layer)
            known = dict.fromkeys(name for owner in owners for name in arguments_of(owner)[0] if name != "spec")
            if unknown := [name for name in kwargs if name not in known]:
                raise unknown_argument(type(self).__name__, unknown[0], known) from err
            raise
        self.spec = spec
        self.data_format = data_format_of(data_format)
        self.channels_last = self.data_format == "channels_last"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "attention" in vars(cls):
            cls.attention = for_symbols_and_variables(cls.attention)

    def linear(self, name: str) -> Any:
        """A layer for the matrix `name` of the spec, over the last axis; where it has a kernel, strided by it."""
        weight, bias = self.spec.weights[f"{name}.weight"], self.spec.weights.get(f"{name}.bias")
        if weight.shape[2:]:
            return Conv(weight, bias, "strided", name=name, dtype=self.dtype_policy)
        return keras.layers.Dense(
            weight.shape[0],
            use_bias=bias is not None,
            kernel_initializer=start(weight),
            bias_initializer=start(bias),
            name=name,
            dtype=self.dtype_policy,
        )

    def conv_same(self, name: str, padding_mode: str = "zeros") -> Conv:
        """The layer that slides kernel `name` of the spec."""
        return Conv(self.spec.weights[f"{name}.weight"], None, padding_mode, name=name, dtype=self.dtype_policy)

    def batch_norm(self, name: str) -> Any:
        """The layer for batch norm `name` of the spec; where the block has none of that name, the identity."""
        weight = self.spec.weights.get(f"{name}.weight")
        if weight is None:
            return Identity(name=name, dtype=self.dtype_policy)
        return BatchNorm(start(weight), name=name, dtype=self.dtype_policy)

    def accept(self, *inputs: Any) -> None:
        """Raise TypeError or ValueError unless these are inputs that the spec allows; build what is not built yet."""
        for x in inputs:
            if not hasattr(x, "shape") or not hasattr(x, "dtype"):
                raise TypeError(f"expected a tensor, got {type(x).__name__}")
        self.spec.accept(*(x.shape for x in inputs), channels_last=self.channels_last)
        for x in inputs:
            if not keras.backend.is_float_dtype(kind := keras.backend.standardize_dtype(x.dtype)):
                hint = ": convert it, as keras.ops.cast does, and scale it as in training"
                raise TypeError(f"expected a floating-point input, got {kind}{hint}")
        if not self.built:
            self.build(*(x.shape for x in inputs))

    def call(self, x: Any, training: bool | None = None, attention_only: bool = False) -> Any:
        """The block's output or, with `attention_only`, its coefficients: what `attention` is in functional models."""
        coefficients = self.attention(x, training=training)
        return coefficients if attention_only else x * coefficients

    def compute_output_shape(self, *shapes: Any) -> Any:
        self.spec.accept(*shapes, channels_last=self.channels_last)
        return shapes[0]

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        arguments = signature(self.call).bind(*args, **kwargs).arguments.values()
        inputs = [x for x in arguments if keras.utils.is_keras_tensor(x)]
        self.accept(*inputs)
        if kwargs.get("attention_only"):
            return keras.Operation.compute_output_spec(self, *args, **kwargs)   # by a trace
        return keras.KerasTensor(inputs[0].shape, dtype=self.compute_dtype)

    def quantize(self, mode: str | None = None, type_check: bool = True, config: Any = None) -> None:
        """Quantize the dense layers inside. Raises NotImplementedError where there are none."""
        leaves = [part for part in self._flatten_layers(include_self=False) if type(part) is keras.layers.Dense]
        if not leaves:
            raise NotImplementedError(f"Keras quantizes dense layers, {type(self).__name__} has none")
        for leaf in leaves:
            leaf.quantize(mode, type_check=type_check, config=config)

    def get_config(self) -> dict[str, Any]:
        own = super().get_config() | self.spec.config() | {"data_format": self.data_format}
        return own | inner_policies(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        spec, given = _spec_class(cls), {name: value for name, value in config.items() if name != POLICIES}
        block = cls(**(without_idle_rules(spec, given) if spec else given))
        return with_policies(block, config)


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


def for_symbols_and_variables(attention: Callable[..., Any]) -> Callable[..., Any]:
    """A block's method `attention`, for KerasTensors and variables too.

    For a KerasTensor it calls the block as a layer: a model that held the operations instead, or layers within the
    block, could not be reloaded. (A body with a `call` of its own takes `attention_only` there.) A tf.Variable, which
    has no `ndim`, is read.
    """

    @wraps(attention)
    def call(block: Any, *inputs: Any, **kwargs: Any) -> Any:
        if any(keras.utils.is_keras_tensor(x) for x in (*inputs, *kwargs.values())):
            return block(*inputs, **kwargs, attention_only=True)
        tensors = [x[...] if hasattr(x, "shape") and not hasattr(x, "ndim") else x for x in inputs]
        return attention(block, *tensors, **kwargs)

    return call


def _spec_class(cls: type[Any]) -> Any:
    """The class of a block's spec, which stands in the module `spec` beside the block's own; None where none does."""
    for each in cls.__mro__:
        module = sys.modules.get(f"{each.__module__.rpartition('.')[0]}.spec")
        if is_dataclass(found := getattr(module, each.__name__, None)):
            return found
    return None


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
