"""Layers of Keras that the U-Net is built of and Keras does not have. Channels last: (N, *S, C)."""

from __future__ import annotations

from functools import reduce
from typing import Any

from ..ops.keras import keras, mean, over_batch, register, resize, sizes, wide
from ..ops.numpy import EPSILON

ops = keras.ops


class _EmptyBatches(keras.layers.Layer):
    """Before a layer of Keras among the bases of a class: the layer takes an empty batch too."""

    def call(self, inputs: Any) -> Any:
        return over_batch(super().call, inputs)


@register
class Conv1D(_EmptyBatches, keras.layers.Conv1D):
    """keras.layers.Conv1D, which takes an empty batch too."""


@register
class Conv2D(_EmptyBatches, keras.layers.Conv2D):
    """keras.layers.Conv2D, which takes an empty batch too."""


@register
class Conv3D(_EmptyBatches, keras.layers.Conv3D):
    """keras.layers.Conv3D, which takes an empty batch too."""


@register
class InstanceNorm(keras.layers.Layer):
    """(N, *S, C) -> (N, *S, C): each channel of each sample normalised, in float32 at least."""

    def call(self, x: Any) -> Any:
        z, axes = ops.cast(x, wide(x.dtype)), tuple(range(1, x.ndim - 1))
        center = mean(z, axes, keepdims=True)
        var = mean(ops.square(z - center), axes, keepdims=True)
        return ops.cast((z - center) * ops.rsqrt(var + EPSILON), x.dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()   # said, because Keras's own guess takes no policy for an argument


@register
class PReLU(keras.layers.Layer):
    """The input where it is positive, slope times it where it is not; one slope in all, as in torch."""

    def build(self, input_shape: Any) -> None:
        self.weight = self.add_weight(name="weight", shape=(1,), initializer=keras.initializers.Constant(0.25))

    def call(self, x: Any) -> Any:
        return ops.where(x > 0, x, ops.cast(self.weight, x.dtype) * x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()   # said, because Keras's own guess takes no policy for an argument


@register
class MaxPool(keras.layers.Layer):
    """(N, *S, C) -> (N, *ceil(S / window), C): maximum over windows side by side, the last one cut off by the edge."""

    def __init__(self, window: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window = tuple(window)

    def call(self, x: Any) -> Any:
        if wide(x.dtype) != "float64":
            for axis, width in enumerate(self.window, start=1):
                if width > 2:   # "same" would pad before x, too
                    n = ops.shape(x)[axis]
                    whole = ops.arange((n + width - 1) // width * width, dtype="int32")
                    x = ops.take(x, ops.minimum(whole, n - 1), axis)
            return ops.max_pool(x, self.window, self.window, padding="same", data_format="channels_last")
        for axis, width in enumerate(self.window, start=1):   # TensorFlow pools no volumes in float64
            n = ops.shape(x)[axis]
            first = width * ops.arange((n + width - 1) // width, dtype="int32")
            x = reduce(ops.maximum, [ops.take(x, ops.minimum(first + k, n - 1), axis) for k in range(width)])
        return x

    def compute_output_shape(self, x: Any) -> Any:
        return (x[0], *(n and -(-n // w) for n, w in zip(x[1:-1], self.window, strict=True)), x[-1])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"window": self.window}


@register
class Crop(keras.layers.Layer):
    """[(N, *S, C), (N, *T, D)] -> (N, *(scale T), C): from `start` on, as many pixels as scale times the second's."""

    def __init__(self, start: Any, scale: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start, self.scale = start, scale

    def call(self, inputs: Any) -> Any:
        x, like = inputs
        dims = x.ndim - 2
        starts, scales = ([n] * dims if isinstance(n, int) else n for n in (self.start, self.scale))
        ends = [a + s * n for a, s, n in zip(starts, scales, sizes(like), strict=True)]
        return x[(slice(None), *(slice(a, b) for a, b in zip(starts, ends, strict=True)))]

    def compute_output_shape(self, shapes: Any) -> Any:
        x, like = shapes
        scales = [self.scale] * (len(x) - 2) if isinstance(self.scale, int) else self.scale
        return (x[0], *(n and n * s for n, s in zip(like[1:-1], scales, strict=True)), x[-1])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"start": self.start, "scale": self.scale}


@register
class Widen(keras.layers.Layer):
    """(N, *S, C) -> (N, *max(S, least), C): the last pixel repeated."""

    def __init__(self, least: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.least = tuple(least)

    def call(self, x: Any) -> Any:
        for axis, low in enumerate(self.least, start=1):
            if x.shape[axis] is None or x.shape[axis] < low:
                n = ops.shape(x)[axis]
                x = ops.take(x, ops.minimum(ops.arange(ops.maximum(n, low), dtype="int32"), n - 1), axis)
        return x

    def compute_output_shape(self, x: Any) -> Any:
        return (x[0], *(n and max(n, low) for n, low in zip(x[1:-1], self.least, strict=True)), x[-1])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"least": self.least}


@register
class Upsample(keras.layers.Layer):
    """(N, *S, C) -> (N, *(scale S), C), linearly."""

    def __init__(self, scale: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x: Any) -> Any:
        return resize(x, [n * s for n, s in zip(sizes(x), self.scale, strict=True)], "linear", align_corners=False)

    def compute_output_shape(self, x: Any) -> Any:
        return (x[0], *(n and n * s for n, s in zip(x[1:-1], self.scale, strict=True)), x[-1])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"scale": self.scale}


@register
class ResizeLike(keras.layers.Layer):
    """[(N, *S, C), (N, *T, D)] -> (N, *T, C), linearly."""

    def call(self, inputs: Any) -> Any:
        return resize(inputs[0], sizes(inputs[1]), "linear", align_corners=False)

    def compute_output_shape(self, shapes: Any) -> Any:
        return (*shapes[1][:-1], shapes[0][-1])

    def get_config(self) -> dict[str, Any]:
        return super().get_config()   # said, because Keras's own guess takes no policy for an argument
