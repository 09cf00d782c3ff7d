"""Norms with and without weights, in NumPy. Arrays are (N, C, *S)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from ...contract import Array

EPSILON = 1e-5   # added to the variance in batch, layer, group and instance norm
MOMENTUM = 0.1   # weight of the current batch in the running statistics


def batch_norm(x: Array, weights: Mapping[str, Array], name: str, training: bool) -> Array:
    """Normalise each channel of x: (N, C, *S) -> (N, C, *S). Return x itself if `weights` has no norm of this name.

    weights: has "<name>.weight", "<name>.bias", "<name>.mean" and "<name>.var", (C,) each.

    In training the statistics are those of the batch, and the running statistics in `weights` are updated in place.
    The running variance is unbiased: n / (n - 1) times the variance of the batch.

    Raises:
        ValueError: in training, if x has one value per channel.

    """
    if f"{name}.weight" not in weights:
        return x
    weight, bias, mean, var = (weights[f"{name}.{part}"] for part in ("weight", "bias", "mean", "var"))
    shape, axes = (-1, *(1,) * (x.ndim - 2)), (0, *range(2, x.ndim))
    if training:
        n = x.size // x.shape[1]
        if n == 1:
            raise one_value(x.shape)
        batch_mean, batch_var = x.mean(axis=axes), x.var(axis=axes)
        mean += MOMENTUM * (batch_mean - mean)
        var += MOMENTUM * (batch_var * n / (n - 1) - var)
        mean, var = batch_mean, batch_var
    scale = weight / np.sqrt(var + EPSILON)
    return np.asanyarray((x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape))


def one_value(shape: Sequence[int | None]) -> ValueError:
    """Return the error for batch norm in training on an input of this shape, with one value per channel."""
    got = f"got input of shape {tuple(shape)}, which has no variance"
    other_norms = "norm=False for a block with this argument, norm='instance' for a U-Net"
    fix = f"give a larger batch or larger inputs, or another norm: {other_norms}"
    return ValueError(f"expected more than 1 value per channel in training for batch norm, {got}: {fix}")


def layer_norm(x: Array, weights: Mapping[str, Array], name: str, epsilon: float = EPSILON) -> Array:
    """Normalise the channels of x at each position: (N, C, *S) -> (N, C, *S), also (N, C) -> (N, C).

    weights: has "<name>.weight" and "<name>.bias", (C,) each. epsilon: added to the variance.
    """
    shape = (-1, *(1,) * (x.ndim - 2))
    weight, bias = (weights[f"{name}.{part}"].reshape(shape) for part in ("weight", "bias"))
    center, var = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    return np.asanyarray((x - center) / np.sqrt(var + epsilon) * weight + bias)


def group_norm(x: Array, weights: Mapping[str, Array], name: str, groups: int) -> Array:
    """Normalise each group of consecutive channels of each sample: (N, C, *S) -> (N, C, *S).

    weights: has "<name>.weight" and "<name>.bias", (C,) each. groups: number of groups, a divisor of C.
    """
    shape = (-1, *(1,) * (x.ndim - 2))
    weight, bias = (weights[f"{name}.{part}"].reshape(shape) for part in ("weight", "bias"))
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    axes = tuple(range(2, grouped.ndim))
    center, var = grouped.mean(axis=axes, keepdims=True), grouped.var(axis=axes, keepdims=True)
    return np.asanyarray(((grouped - center) / np.sqrt(var + EPSILON)).reshape(x.shape) * weight + bias)


def instance_norm(x: Array) -> Array:
    """Normalise each channel of each sample, without weights and running statistics: (N, C, *S) -> (N, C, *S)."""
    axes = tuple(range(2, x.ndim))
    center, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return np.asanyarray((x - center) / np.sqrt(var + EPSILON))


def spatial_norm(x: Array, order: int, epsilon: float) -> Array:
    """Return the norm over the spatial axes: (N, C, *S) -> (N, C).

    order: 1 for the sum of magnitudes, 2 for the root of the sum of squares plus `epsilon`.
    """
    axes = tuple(range(2, x.ndim))
    return np.asanyarray(np.abs(x).sum(axis=axes) if order == 1 else np.sqrt(np.square(x).sum(axis=axes) + epsilon))


def over_channel_norm(e: Array, order: int, epsilon: float) -> Array:
    """Return e divided by its norm over channels, per channel: (N, C) -> (N, C).

    order: 1 for the mean of magnitudes plus `epsilon`, 2 for the root of the mean of squares plus `epsilon`.
    """
    if order == 1:
        return np.asanyarray(e / (np.abs(e).mean(axis=1, keepdims=True) + epsilon))
    return np.asanyarray(e / np.sqrt(np.square(e).mean(axis=1, keepdims=True) + epsilon))


def relative_deviation(x: Array, epsilon: float, unbiased: bool) -> Array:
    """Return (x - mean)^2 / (variance + epsilon), with mean and variance over the spatial axes: (N, C, *S) -> the same.

    unbiased: whether the variance is the sum of squares divided by n - 1 instead of n, the number of positions. For
    n = 1 it is 0.
    """
    axes = tuple(range(2, x.ndim))
    d = np.square(x - x.mean(axis=axes, keepdims=True))
    n = max(prod(x.shape[2:]) - unbiased, 1)
    return np.asanyarray(d / (d.sum(axis=axes, keepdims=True) / n + epsilon))
