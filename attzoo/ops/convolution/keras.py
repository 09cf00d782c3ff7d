"""Linear maps and convolutions, in Keras. Tensors are (N, *S, C)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ...contract import Weight
from ..common.keras import allow_empty_batch, keras, ops
from ..weights.keras import initialize

FEW = 8   # number of inputs per group up to which TensorFlow computes a grouped convolution as a sum of depthwise ones


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
