"""Activations and softmax, in NumPy. Arrays are (N, C, *S)."""

from __future__ import annotations

import numpy as np

from ...contract import Array


def relu(z: Array) -> Array:
    """Return max(z, 0), and NaN where z is NaN."""
    return np.maximum(z, 0)


def maximum(a: Array, b: Array) -> Array:
    """Return the larger of a and b at each position, or NaN if either is NaN. a and b broadcast."""
    return np.maximum(a, b)


def sigmoid(z: Array) -> Array:
    """Return 1 / (1 + exp(-z)), without overflow and with full relative precision for small results."""
    return np.exp(-np.logaddexp(0, -z))


def tanh(z: Array) -> Array:
    """Return the hyperbolic tangent."""
    return np.tanh(z)


def hard_sigmoid(z: Array) -> Array:
    """Return relu6(z + 3) / 6, the piecewise linear sigmoid of MobileNetV3."""
    return np.clip(z + 3, 0, 6) / 6


def silu(z: Array) -> Array:
    """Return z * sigmoid(z)."""
    return z * sigmoid(z)


def hard_swish(z: Array) -> Array:
    """Return z * relu6(z + 3) / 6, the piecewise quadratic approximation of silu in MobileNetV3."""
    return z * hard_sigmoid(z)


def prelu(z: Array, slope: Array) -> Array:
    """Return z where z is positive, and slope * z elsewhere; slope: (1,)."""
    return np.where(z > 0, z, slope * z)


GATES = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def activate(z: Array, act: str) -> Array:
    """Return the activation `act`, one of contract.ACTIVATIONS, of the hidden units z."""
    return {"relu": relu, "silu": silu, "hard_swish": hard_swish}[act](z)


def position_softmax(z: Array) -> Array:
    """Return the softmax over the spatial axes: (N, K, *S) -> (N, K, *S). Each of the K channels sums to 1."""
    axes = tuple(range(2, z.ndim))
    exponentials = np.exp(z - z.max(axis=axes, keepdims=True))
    return np.asanyarray(exponentials / exponentials.sum(axis=axes, keepdims=True))


def channel_softmax(s: Array) -> Array:
    """Return the softmax over the channels: (N, C) -> (N, C)."""
    return position_softmax(s[:, None])[:, 0]
