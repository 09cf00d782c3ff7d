"""The operations of ops/numpy.py in Keras 3, with layers and initializers for blocks. Tensors are (N, *S, C).

Blocks import `keras` only from here, because triton must be loaded first.
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

from .numpy import EPSILON as EPSILON  # noqa: E402
from .numpy import MOMENTUM, one_value  # noqa: E402

require("keras", keras.__version__, "3.13.1")   # loading a model with earlier versions can execute code

register = keras.saving.register_keras_serializable(package="attzoo")


def data_format_of(data_format: str | None) -> str:
    """Return the data format, "channels_last" or "channels_first"; None means the one of keras.config.

    Raises ValueError for other values.
    """
    value = keras.config.image_data_format() if data_format is None else data_format
    return str(choice("data_format", value, ("channels_last", "channels_first")))


def check_policy(policy: Any) -> None:
    """Raise ValueError unless the dtypes of a policy are floating-point dtypes and it is not quantized."""
    kinds = policy.variable_dtype, policy.compute_dtype
    if not all(keras.backend.is_float_dtype(kind) for kind in kinds):
        raise ValueError(f"dtype must be a floating-point dtype, such as 'float32', got {policy.name!r}")
    if getattr(policy, "quantization_mode", None):
        hint = "create the layer in a floating-point dtype, then call quantize() of the layer"
        raise ValueError(f"dtype must not be quantized, got {policy.name!r}: {hint}")


class Conv(keras.layers.Layer):
    """A convolution: (N, *S, I) -> (N, *S, O), or (N, *S // k, O) where mode is "strided".

    Mode "zeros" or "circular" is the padding of a convolution that keeps the size; "strided" has no padding and a
    stride equal to the kernel. `dilation` is the distance between neighbouring taps of the kernel, in pixels. The
    kernel is stored in the order of the spec, (O, I / groups, *k), or (k,) where O = I = 1. keras.layers.Conv2D stores
    (*k, I, O), and with one output channel cannot be trained in float64 or half precision on Keras's torch backend on a
    CPU.

    weight, bias: descriptions of the kernel and the bias in the spec; bias None: no bias.
    """

    def __init__(self, weight: Weight, bias: Weight | None, mode: str, dilation: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.descriptions = weight, bias
        self.mode, self.dilation = mode, dilation

    def build(self, input_shape: Any) -> None:
        """Create the kernel and the bias."""
        weight, bias = self.descriptions
        self.weight = self.add_weight(name="weight", shape=weight.shape, initializer=initialize(weight))
        self.bias = bias and self.add_weight(name="bias", shape=bias.shape, initializer=initialize(bias))

    def call(self, x: Any) -> Any:
        """Return the convolution of x (N, *S, I)."""
        shape = self.descriptions[0].shape
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
        y = allow_empty_batch(partial(conv, strides=strides, padding=padding, dilation=self.dilation), x, kernel)
        return y if self.bias is None else y + self.bias


FEW = 8   # inputs per group up to which TensorFlow computes a grouped convolution as a sum of depthwise ones


def conv(x: Any, kernel: Any, strides: int | Sequence[int], padding: str, dilation: int) -> Any:
    """Return keras.ops.conv of x and a kernel: (N, *S, I), (*k, I / groups, O) -> (N, *S, O).

    On TensorFlow, keras.ops.conv compiles a grouped convolution with XLA at every call, which takes a second for new
    shapes, and in 3-D cannot be converted to LiteRT. With few inputs per group it is a sum of depthwise convolutions.
    strides, padding: as in keras.ops.conv; must be 1 and "same" if there are several groups.
    """
    inputs, outputs = kernel.shape[-2:]
    groups = (x.shape[-1] or inputs) // inputs   # unknown channels: Keras finds the groups when the graph runs
    if groups == 1 or inputs > FEW or keras.backend.backend() != "tensorflow":
        return ops.conv(x, kernel, strides, padding, "channels_last", dilation)
    kernel = ops.reshape(kernel, (*kernel.shape[:-1], groups, outputs // groups))
    y = depthwise(x[..., ::inputs], kernel[..., 0, :, :], dilation)
    for i in range(1, inputs):
        y = y + depthwise(x[..., i::inputs], kernel[..., i, :, :], dilation)
    return y


def depthwise(x: Any, kernel: Any, dilation: int) -> Any:
    """Convolve every channel on its own, padded to keep the size: (N, *S, C), (*k, C, M) -> (N, *S, C * M).

    dilation: as in `Conv`. TensorFlow has no 3-D form: the first spatial axis is part of the batch, in one 2-D
    convolution per tap along it.
    """
    if x.ndim < 5:
        return ops.depthwise_conv(x, kernel, 1, "same", "channels_last", dilation)
    n, half = ops.shape(x), kernel.shape[0] // 2 * dilation
    padded, y = ops.pad(x, ((0, 0), (half, half), *((0, 0),) * 3)), 0
    for i in range(kernel.shape[0]):
        images = ops.reshape(padded[:, i * dilation : i * dilation + n[1]], (-1, *n[2:]))
        y = y + depthwise(images, kernel[i], dilation)
    return ops.reshape(y, (-1, *n[1:4], kernel.shape[-2] * kernel.shape[-1]))


def allow_empty_batch(layer: Callable[..., Any], x: Any, *args: Any) -> Any:
    """Return layer(x, *args), also for an empty batch, for which convolutions of Keras 3.13 and oneDNN raise an error.

    For an empty batch the layer is applied to one sample of zeros, and the output for it is dropped.
    """
    if x.shape[0] != 0:
        return layer(x, *args)
    return layer(ops.pad(x, ((0, 1), *((0, 0),) * (x.ndim - 1))), *args)[:0]


class Identity(keras.layers.Identity):
    """keras.layers.Identity with the arguments of `BatchNorm`, for blocks without norm."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Return x."""
        return x


@register
class BatchNorm(keras.layers.Layer):
    """(N, *S, C) -> (N, *S, C): batch norm as in torch, with an unbiased running variance.

    Statistics are computed and stored in float32 or float64. Raises ValueError in training on one value per channel.
    """

    def __init__(self, gamma_initializer: Any = "ones", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)

    def build(self, input_shape: Any) -> None:
        """Create the weights and the running statistics."""
        shape = (input_shape[-1],)
        self.weight = self.add_weight(name="weight", shape=shape, initializer=self.gamma_initializer, autocast=False)
        self.bias = self.add_weight(name="bias", shape=shape, initializer="zeros", autocast=False)
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros", trainable=False, autocast=False)
        self.var = self.add_weight(name="var", shape=shape, initializer="ones", trainable=False, autocast=False)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Return the norm of x (N, *S, C); in training, update the running statistics."""
        z = ops.cast(x, wide(x.dtype))
        weight, bias, center, var = (ops.cast(v, z.dtype) for v in (self.weight, self.bias, self.mean, self.var))
        if training and self.trainable:   # a frozen norm uses running statistics, as in Keras
            axes = tuple(range(x.ndim - 1))
            batch_mean = mean(z, axes)
            centered = z - batch_mean
            batch_var = mean(ops.square(centered), axes)
            unbiased = batch_var * self.unbiased(x)
            self.mean.assign(self.mean + MOMENTUM * (ops.cast(batch_mean, self.mean.dtype) - self.mean))
            self.var.assign(self.var + MOMENTUM * (ops.cast(unbiased, self.var.dtype) - self.var))
            return ops.cast(centered * (weight * ops.rsqrt(batch_var + EPSILON)) + bias, x.dtype)
        scale = weight * ops.rsqrt(var + EPSILON)
        return ops.cast(z * scale + (bias - center * scale), x.dtype)   # two passes over x, not three

    def unbiased(self, x: Any) -> Any:
        """Return n / (n - 1) for the n values of each channel of x (N, *S, C).

        Raises ValueError if n is 1. If a size of x is unknown, n = 1 gives 1.
        """
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
        """Return the arguments."""
        return super().get_config() | {"gamma_initializer": keras.initializers.serialize(self.gamma_initializer)}


class _Norm(keras.layers.Layer):
    """Base class of norms with a weight and a bias for each channel: (N, *S, C) -> (N, *S, C)."""

    def build(self, input_shape: Any) -> None:
        """Create the weight and the bias."""
        shape = (input_shape[-1],)
        self.weight = self.add_weight(name="weight", shape=shape, initializer="ones", autocast=False)
        self.bias = self.add_weight(name="bias", shape=shape, initializer="zeros", autocast=False)


@register
class LayerNorm(_Norm):
    """Layer norm of the channels at each position: (N, *S, C) -> (N, *S, C), also (N, C) -> (N, C).

    Statistics are computed in float32 or float64. epsilon: added to the variance.
    """

    def __init__(self, epsilon: float = EPSILON, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, x: Any) -> Any:
        """Return the norm of x (N, *S, C) in the dtype of x."""
        z = ops.cast(x, wide(x.dtype))
        centered = z - mean(z, -1, keepdims=True)
        scale = ops.rsqrt(mean(ops.square(centered), -1, keepdims=True) + self.epsilon)
        return ops.cast(centered * scale * ops.cast(self.weight, z.dtype) + ops.cast(self.bias, z.dtype), x.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {"epsilon": self.epsilon}


@register
class GroupNorm(_Norm):
    """Group norm of consecutive channels: (N, *S, C) -> (N, *S, C). Statistics are computed in float32 or float64.

    groups: number of groups, a divisor of C.
    """

    def __init__(self, groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = groups

    def call(self, x: Any) -> Any:
        """Return the norm of x (N, *S, C) in the dtype of x."""
        shape, kind = ops.shape(x), wide(x.dtype)
        z = ops.reshape(ops.cast(x, kind), (*shape[:-1], self.groups, shape[-1] // self.groups))
        axes = (*range(1, x.ndim - 1), x.ndim)   # positions, and the channels of a group
        centered = z - mean(z, axes, keepdims=True)
        # TensorFlow's float32 mean of 65,536 equal pixels is off by 1e-4 of them, which the norm multiplies by 300
        centered = centered - mean(centered, axes, keepdims=True)
        y = ops.reshape(centered * ops.rsqrt(mean(ops.square(centered), axes, keepdims=True) + EPSILON), shape)
        return ops.cast(y * ops.cast(self.weight, kind) + ops.cast(self.bias, kind), x.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {"groups": self.groups}


def in_dtype_of(x: Any, variable: Any) -> Any:
    """Return a variable in the dtype of x. Keras makes this cast only inside a layer's call."""
    return ops.cast(variable, x.dtype)


def find(layer: Any, name: str) -> Any:
    """Return the variable with canonical `name`, such as "channel.excite.weight".

    Canonical names are the keys of a spec's `weights`. Their "weight" is the attribute `kernel` of Keras's own layers.
    """
    return getattr(*locate(layer, name))


def locate(layer: Any, name: str) -> tuple[Any, str]:
    """Return the layer inside `layer` that has the variable with canonical `name`, and the name of its attribute."""
    path, _, leaf = name.rpartition(".")
    if isinstance(layer, keras.Model):   # the path of a layer in it is the beginning of `path`
        candidates = [(path_of(part), part) for part in layer.layers if f"{path}.".startswith(f"{path_of(part)}.")]
        layer_path, layer = max(candidates, key=lambda pair: len(pair[0]))
        path = path[len(layer_path) + 1 :]
    for step in filter(None, path.split(".")):
        layer = getattr(layer, "output_" if step == "output" else step)   # Keras has an `output` of its own
    return layer, "kernel" if leaf == "weight" and hasattr(layer, "kernel") else leaf


def path_of(layer: Any) -> str:
    """Return the canonical path of a layer if it has one, else its name."""
    return str(getattr(layer, "canonical", layer.name))


def initialize(weight: Weight | None) -> Any:
    """Return the Keras initializer for a `Weight`; zeros for None."""
    if weight is None:
        return keras.initializers.Zeros()
    if weight.initialization == "uniform":
        return keras.initializers.RandomUniform(weight.center - weight.scale, weight.center + weight.scale)
    if weight.initialization == "normal":
        return keras.initializers.RandomNormal(weight.center, weight.scale)
    if weight.initialization == "orthogonal":
        return keras.initializers.Orthogonal(weight.scale)
    return keras.initializers.Constant(weight.center)


def reinitialize(variable: Any, weight: Weight) -> None:
    """Assign new initial values to a variable, as `weight` describes them."""
    shape = weight.size // weight.shape[0], weight.shape[0]   # inputs x outputs
    new_values = initialize(weight)(shape, dtype=variable.dtype)
    new_values = new_values if variable.name == "kernel" else ops.transpose(new_values)
    variable.assign(ops.reshape(new_values, variable.shape))


def space(x: Any, channels_last: bool) -> tuple[int, ...]:
    """Return the indices of the spatial axes of x, (N, *S, C) or (N, C, *S)."""
    return tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))


def avg_pool(x: Any, channels_last: bool) -> Any:
    """Return the mean over the spatial axes: (N, *S, C) or (N, C, *S) -> (N, C)."""
    return mean(x, space(x, channels_last))


def axis_mean(x: Any, axis: int, channels_last: bool) -> Any:
    """Return the mean over all spatial axes except one. In 1-D, x itself is returned.

    (N, *S, C) -> (N, S[axis], C), or (N, C, *S) -> (N, C, S[axis]).
    axis: index of the spatial axis that remains, 0 for the first.
    """
    remaining = space(x, channels_last)[axis]
    axes = tuple(a for a in space(x, channels_last) if a != remaining)
    return mean(x, axes) if axes else x


def expand_axis(s: Any, x: Any, axis: int, channels_last: bool) -> Any:
    """Return the result of `axis_mean`, or a tensor of its shape, reshaped to broadcast with x.

    (N, S[axis], C) -> (N, 1.., S[axis], 1.., C), or (N, C, S[axis]) -> (N, C, 1.., S[axis], 1..).
    axis: as in `axis_mean`.
    """
    shape = ops.shape(s)
    length = shape[1] if channels_last else shape[2]
    ones = (1,) * axis, (1,) * (x.ndim - 3 - axis)
    sizes = (*ones[0], length, *ones[1])
    return ops.reshape(s, (shape[0], *sizes, shape[2]) if channels_last else (shape[0], shape[1], *sizes))


def axis_means(x: Any, channels_last: bool) -> Any:
    """Return `axis_mean` of every spatial axis, concatenated: (N, *S, C) or (N, C, *S) -> (N, sum of S, C)."""
    means = [axis_mean(x, axis, channels_last) for axis in range(x.ndim - 2)]
    return ops.concatenate([to_last(s, channels_last) for s in means], axis=1)


def split_axes(z: Any, x: Any, channels_last: bool) -> list[Any]:
    """Return the part of z of each spatial axis of x, as channels last.

    (N, sum of S, K) and x of either layout -> (N, 1.., S[axis], 1.., K) each. It reverses the concatenation of
    `axis_means`.
    """
    parts, start, shape = [], 0, ops.shape(x)
    for axis, i in enumerate(space(x, channels_last)):
        parts.append(expand_axis(z[:, start : start + shape[i]], x, axis, channels_last=True))
        start = start + shape[i]
    return parts


def max_pool(x: Any, channels_last: bool) -> Any:
    """Return the maximum over the spatial axes: (N, *S, C) or (N, C, *S) -> (N, C).

    The gradient is split evenly among equal maxima.
    """
    return amax(x, space(x, channels_last))


def mean_and_max(x: Any, axis: int, channels_last: bool) -> Any:
    """Return the mean and the maximum of x over an axis of C or *S: (N, *S, C) or (N, C, *S) -> (N, *map, 2).

    axis: index of the axis in (N, C, *S). For axis 1 *map is *S. For another axis it is *S with C in the place of the
    axis, so that (N, H, W, C) gives (N, C, W, 2) for axis 2 and (N, H, C, 2) for axis 3. The gradient is split evenly
    among equal maxima.
    """
    channels = -1 if channels_last else 1
    pooled = channels if axis == 1 else axis - channels_last
    maps = [mean(x, pooled), amax(x, pooled)]
    if axis > 1:
        maps = [ops.moveaxis(m, channels, axis - 1) for m in maps]
    return stack(maps, -1)


def from_map(a: Any, axis: int, channels_last: bool) -> Any:
    """Return coefficients of a map of `mean_and_max` over an axis, (N, *map, 1), in a shape that broadcasts to x."""
    return from_last(a if axis == 1 else ops.swapaxes(a, -1, axis - 1), channels_last)


def spatial_norm(x: Any, order: int, epsilon: float, channels_last: bool) -> Any:
    """Return the norm over the spatial axes: (N, *S, C) or (N, C, *S) -> (N, C), float32 for half precision.

    order: 1 for the sum of magnitudes, 2 for the root of the sum of squares plus `epsilon`.
    """
    z, axes = ops.cast(x, wide(x.dtype)), space(x, channels_last)
    return ops.sum(ops.abs(z), axis=axes) if order == 1 else ops.sqrt(ops.sum(ops.square(z), axis=axes) + epsilon)


def over_channel_norm(e: Any, order: int, epsilon: float) -> Any:
    """Return e divided by its norm over channels, per channel: (N, C) -> (N, C).

    order: 1 for the mean of magnitudes plus `epsilon`, 2 for the root of the mean of squares plus `epsilon`.
    """
    if order == 1:
        return e / (mean(ops.abs(e), 1, keepdims=True) + epsilon)
    return e / ops.sqrt(mean(ops.square(e), 1, keepdims=True) + epsilon)


def position_softmax(z: Any, channels_last: bool) -> Any:
    """Return the softmax of z over the spatial axes, (N, *S, K), or (N, K, *S) without `channels_last`.

    Each channel sums to 1. The result for half precision is float32: the smallest normal float16, 6e-5, is more than 1
    / S for large maps.
    """
    axes, z = space(z, channels_last), ops.cast(z, wide(z.dtype))
    exponentials = ops.exp(z - ops.stop_gradient(amax(z, axes, keepdims=True)))
    return exponentials / ops.sum(exponentials, axis=axes, keepdims=True)


def weighted_pool(x: Any, p: Any, channels_last: bool) -> Any:
    """Return the sum over the spatial axes of x * p, in x's dtype: (N, *S, C), (N, *S, 1) or (N, *S, C) -> (N, C).

    The result is the mean of x weighted by p if p sums to 1 over the spatial axes, as `position_softmax` does. Without
    `channels_last`, x and p are channels first.
    """
    kind = wide(x.dtype)
    products = ops.cast(x, kind) * ops.cast(p, kind)
    return ops.cast(ops.sum(products, axis=space(x, channels_last)), x.dtype)


def relative_deviation(x: Any, epsilon: float, unbiased: bool, channels_last: bool) -> Any:
    """Return (x - mean)^2 / (variance + epsilon), with mean and variance over the spatial axes, in the shape of x.

    unbiased: whether the variance is the sum of squares divided by n - 1 instead of n, the number of positions. For
    n = 1 it is 0. Half precision is computed in float32, because squares may overflow float16.
    """
    axes, z, size, n = space(x, channels_last), ops.cast(x, wide(x.dtype)), ops.shape(x), 1
    d = ops.square(z - mean(z, axes, keepdims=True))
    for axis in axes:
        n = n * size[axis]
    n = ops.maximum(ops.cast(n, z.dtype) - int(unbiased), 1)
    return ops.cast(d / (ops.sum(d, axis=axes, keepdims=True) / n + epsilon), x.dtype)


def mean(x: Any, axis: Any, keepdims: bool = False) -> Any:
    """Return the mean over the axes `axis` in the dtype of x; keepdims as in keras.ops.mean.

    On JAX and torch, keras.ops.mean computes float64 in float32.
    """
    if keras.backend.backend() == "tensorflow" or keras.backend.standardize_dtype(x.dtype) != "float64":
        return ops.mean(x, axis=axis, keepdims=keepdims)
    size, n = ops.shape(x), 1
    for a in (axis,) if isinstance(axis, int) else axis:
        n = n * size[a]
    return ops.sum(x, axis=axis, keepdims=keepdims) / (n if isinstance(n, int) else ops.cast(n, x.dtype))


def wide(dtype: Any) -> str:
    """Return the dtype for statistics and coordinates of values of `dtype`: "float64" for float64, else "float32"."""
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def amax(x: Any, axis: Any, keepdims: bool = False) -> Any:
    """Return the maximum over axes. For an empty batch, for which keras.ops.max may raise, return an empty tensor."""
    largest = ops.sum if x.shape[0] == 0 else ops.max
    return largest(x, axis=axis, keepdims=keepdims)


def expand(s: Any, x: Any, channels_last: bool) -> Any:
    """Return one coefficient per channel reshaped to broadcast with x: (N, C) -> (N, 1.., C) or (N, C, 1..)."""
    ones = (1,) * (x.ndim - 2)
    shape = (*ones, s.shape[-1]) if channels_last else (s.shape[-1], *ones)
    return ops.reshape(s, (-1, *shape))


def to_last(x: Any, channels_last: bool) -> Any:
    """Return x as channels last, (N, *S, C). If `channels_last` is true, x already is and is returned itself."""
    return x if channels_last else ops.moveaxis(x, 1, -1)


def sizes(x: Any) -> tuple[Any, ...]:
    """Return the spatial sizes of (N, *S, C): integers if static, else scalar tensors."""
    return tuple(ops.shape(x))[1:-1]


def from_last(x: Any, channels_last: bool) -> Any:
    """Return x (N, *S, C) in the data format: x itself if `channels_last` is true, else (N, C, *S)."""
    return x if channels_last else ops.moveaxis(x, -1, 1)


relu, sigmoid, stack, multiply = ops.relu, ops.sigmoid, ops.stack, ops.multiply
reshape, concatenate, zeros_like = ops.reshape, ops.concatenate, ops.zeros_like


def maximum(a: Any, b: Any) -> Any:
    """Return the larger of a and b at each position. Where they are equal, each gets half of the gradient.

    tf.maximum passes the gradient of equal numbers to its first argument, so both orders are averaged. Halves are exact
    and do not overflow.
    """
    return 0.5 * ops.maximum(a, b) + 0.5 * ops.maximum(b, a)


def hard_sigmoid(z: Any) -> Any:
    """Return relu6(z + 3) / 6, the piecewise linear sigmoid of MobileNetV3."""
    return ops.relu6(z + 3) / 6


def hard_swish(z: Any) -> Any:
    """Return z * relu6(z + 3) / 6."""
    return z * hard_sigmoid(z)


GATES: dict[str, Callable[[Any], Any]] = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def tanh(z: Any) -> Any:
    """Return the hyperbolic tangent of z. JAX computes `keras.ops.tanh` of float64 with the precision of float32."""
    return 2 * sigmoid(2 * z) - 1


def activate(z: Any, act: str) -> Any:
    """Return the activation `act`, one of contract.ACTIVATIONS, of the hidden units z."""
    return {"relu": relu, "silu": ops.silu, "hard_swish": hard_swish}[act](z)


def adaptive_avg_pool(x: Any, size: int | Sequence[Any]) -> Any:
    """Return means over windows: (N, *S, C) -> (N, *size, C). size: windows per spatial axis, or of every one.

    Windows are those of torch.nn.AdaptiveAvgPool2d; keras.layers.AdaptiveAveragePooling2D accepts no unknown sizes.
    Half precision is computed in float32.
    """
    y = ops.cast(x, wide(x.dtype))
    for axis, new in enumerate([size] * (x.ndim - 2) if isinstance(size, int) else size, start=1):
        old, i = ops.shape(x)[axis], ops.arange(new, dtype="int32")[:, None]
        low, high, width = i * old // new, ((i + 1) * old + new - 1) // new, (old + new - 1) // new + 1
        j = low + ops.arange(width, dtype="int32")    # (new, width), where no window is larger than width
        pixels = ops.moveaxis(ops.take(y, ops.reshape(ops.minimum(j, old - 1), (-1,)), axis), axis, -1)
        windows = ops.where(j < high, ops.reshape(pixels, (*ops.shape(pixels)[:-1], new, width)), 0)
        share = ops.cast(width, y.dtype) / ops.cast(high - low, y.dtype)[:, 0]
        y = ops.moveaxis(mean(windows, -1) * share, -1, axis)   # no sum, which a graph in float16 could not represent
    return ops.cast(y, x.dtype)


def channel_shuffle(x: Any, groups: int, channels_last: bool) -> Any:
    """Take the first channel of each group of consecutive channels, then the second of each; the shape is that of x.

    x: (N, *S, C) or (N, C, *S). groups: number of groups, a divisor of C.
    """
    shape, axis = tuple(ops.shape(x)), x.ndim - 1 if channels_last else 1
    grouped = ops.reshape(x, (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :]))
    return ops.reshape(ops.swapaxes(grouped, axis, axis + 1), shape)


def fold_groups(x: Any, groups: int, channels_last: bool) -> Any:
    """Move groups of consecutive channels into the batch, as channels last: x -> (N * groups, *S, C / groups).

    x: (N, *S, C) or (N, C, *S).
    """
    last = to_last(x, channels_last)
    *n, c = ops.shape(last)
    grouped = ops.moveaxis(ops.reshape(last, (*n, groups, c // groups)), -2, 1)
    return ops.reshape(grouped, (-1, *n[1:], c // groups))


def unfold_groups(z: Any, groups: int) -> Any:
    """Move the groups of `fold_groups` back: (N * groups, *S, K) -> (N, *S, groups * K)."""
    _, *n, k = ops.shape(z)
    return ops.reshape(ops.moveaxis(ops.reshape(z, (-1, groups, *n, k)), 1, -2), (-1, *n, groups * k))


def repeat_channels(x: Any, times: int) -> Any:
    """Repeat each channel `times` times in a row: (N, *S, C) -> (N, *S, C * times)."""
    return ops.repeat(x, times, axis=-1)


def channel_softmax(s: Any) -> Any:
    """Return the softmax over the channels: (N, C) -> (N, C)."""
    return ops.softmax(s, axis=1) if s.shape[1] > 1 else 0 * s + 1   # keras.ops.softmax warns about one channel


def weighted_sum(x: Any, p: Any) -> Any:
    """Return the sum over the channels of x * p: (N, *S, C), (N, C) -> (N, *S, 1), as a product of matrices."""
    return ops.matmul(x, ops.reshape(p, (-1, *(1,) * (x.ndim - 3), p.shape[-1], 1)))


def resize(x: Any, size: Sequence[Any], interpolation: str, align_corners: bool) -> Any:
    """Resample the spatial axes to `size`, one axis after the other: (N, *S, C) -> (N, *size, C).

    interpolation: "linear" or "nearest". align_corners: as in torch.nn.functional.interpolate, for "linear".

    keras.ops.image.resize supports no volumes, computes in float32, and cannot be exported with unknown sizes.
    If the size is static and does not change, x itself is returned.
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
    """Return, for each of `new` positions along an axis, the index of the nearest of `old` positions, in integers."""
    return (2 * ops.arange(new, dtype="int32") + 1) * old // (2 * new)


def taps(old: Any, new: Any, align_corners: bool, dtype: str) -> tuple[Any, Any, Any]:
    """Return the weights of linear interpolation along an axis from `old` to `new` positions, (new,) each.

    They are the indices of the old position before and after each new position, and the distance from the first, in
    `dtype`. align_corners: as in `resize`.
    """
    i = ops.cast(ops.arange(new, dtype="int32"), dtype)
    old, new = ops.cast(old, dtype), ops.cast(new, dtype)
    source = i * ((old - 1) / ops.maximum(new - 1, 1)) if align_corners else (i + 0.5) * (old / new) - 0.5
    source = ops.clip(source, 0, old - 1)
    low = ops.floor(source)
    return ops.cast(low, "int32"), ops.cast(ops.minimum(low + 1, old - 1), "int32"), source - low


def __getattr__(name: str) -> Any:
    return moved(__name__, name, {"Block": "attzoo.blocks.keras.Block", "start": "attzoo.ops.keras.initialize"})
