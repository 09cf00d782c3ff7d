"""Norms with and without weights, in Keras. Tensors are (N, *S, C)."""

from __future__ import annotations

from typing import Any

from ..common.keras import keras, mean, ops, register, space, wide
from .numpy import EPSILON as EPSILON
from .numpy import MOMENTUM, one_value


class Identity(keras.layers.Identity):
    """keras.layers.Identity with the arguments of `BatchNorm`, for blocks without norm."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Return x."""
        return x


@register
class BatchNorm(keras.layers.Layer):
    """(N, *S, C) -> (N, *S, C): batch norm as in torch, with an unbiased running variance.

    Statistics are computed and stored in float32 or float64. gamma_initializer: Keras initializer of the weight. Raises
    ValueError in training on one value per channel.
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
        arrays = self.weight, self.bias, self.mean, self.var
        weight, bias, center, var = (ops.cast(array, z.dtype) for array in arrays)
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
