"""Activations and softmax, in Keras. Tensors are (N, *S, C)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..common.keras import amax, ops, space, stack, wide, zeros_like

relu, sigmoid = ops.relu, ops.sigmoid


def maximum(a: Any, b: Any) -> Any:
    """Return the larger of a and b at each position. Where they are equal, each gets half of the gradient.

    a and b broadcast. This is the maximum of a stack, because keras.ops.maximum passes the gradient of equal numbers to
    its first argument on TensorFlow, and returns float32 for float64 on torch.
    """
    return amax(stack([a + zeros_like(b), b + zeros_like(a)], -1), -1)


def tanh(z: Any) -> Any:
    """Return the hyperbolic tangent of z. JAX computes `keras.ops.tanh` of float64 with the precision of float32."""
    return 2 * sigmoid(2 * z) - 1


def hard_sigmoid(z: Any) -> Any:
    """Return relu6(z + 3) / 6, the piecewise linear sigmoid of MobileNetV3."""
    return ops.relu6(z + 3) / 6


def hard_swish(z: Any) -> Any:
    """Return z * relu6(z + 3) / 6."""
    return z * hard_sigmoid(z)


GATES: dict[str, Callable[[Any], Any]] = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def activate(z: Any, act: str) -> Any:
    """Return the activation `act`, one of contract.ACTIVATIONS, of the hidden units z."""
    return {"relu": relu, "silu": ops.silu, "hard_swish": hard_swish}[act](z)


def position_softmax(z: Any, channels_last: bool) -> Any:
    """Return the softmax of z over the spatial axes, (N, *S, K), or (N, K, *S) without `channels_last`.

    Each channel sums to 1. The result for half precision is float32: the smallest normal float16, 6e-5, is more than 1
    / S for large maps.
    """
    axes, z = space(z, channels_last), ops.cast(z, wide(z.dtype))
    exponentials = ops.exp(z - ops.stop_gradient(amax(z, axes, keepdims=True)))
    return exponentials / ops.sum(exponentials, axis=axes, keepdims=True)


def channel_softmax(s: Any) -> Any:
    """Return the softmax over the channels: (N, C) -> (N, C)."""
    return ops.softmax(s, axis=1) if s.shape[1] > 1 else 0 * s + 1   # keras.ops.softmax warns about one channel
