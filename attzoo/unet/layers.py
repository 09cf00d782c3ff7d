"""Keras layers of the U-Net that Keras does not provide. All are channels last: (N, *S, C)."""

from __future__ import annotations

from functools import reduce
from typing import Any

from ..ops.keras import allow_empty_batch, keras, mean, register, resize, sizes, wide
from ..ops.numpy import EPSILON

ops = keras.ops


class _EmptyBatches(keras.layers.Layer):
    """Mixin, first among the bases, that makes a Keras layer accept an empty batch."""

    def call(self, inputs: Any) -> Any:
        """Return the output of the layer, also for an empty batch."""
        return allow_empty_batch(super().call, inputs)


@register
class Conv1D(_EmptyBatches, keras.layers.Conv1D):
    """keras.layers.Conv1D that accepts an empty batch."""


@register
class Conv2D(_EmptyBatches, keras.layers.Conv2D):
    """keras.layers.Conv2D that accepts an empty batch."""


@register
class Conv3D(_EmptyBatches, keras.layers.Conv3D):
    """keras.layers.Conv3D that accepts an empty batch."""


@register
class InstanceNorm(keras.layers.Layer):
    """Normalise each channel of each sample, in float32 or wider: (N, *S, C) -> (N, *S, C)."""

    def call(self, x: Any) -> Any:
        """Return x (N, *S, C) with each channel of each sample normalised."""
        z, axes = ops.cast(x, wide(x.dtype)), tuple(range(1, x.ndim - 1))
        center = mean(z, axes, keepdims=True)
        var = mean(ops.square(z - center), axes, keepdims=True)
        return ops.cast((z - center) * ops.rsqrt(var + EPSILON), x.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the config. Defined here because Keras's default does not accept a dtype policy as an argument."""
        return super().get_config()


@register
class PReLU(keras.layers.Layer):
    """PReLU with one slope for all channels, as torch.nn.PReLU: max(0, x) + weight * min(0, x)."""

    def build(self, input_shape: Any) -> None:
        """Create the slope, 0.25 as in torch."""
        self.weight = self.add_weight(name="weight", shape=(1,), initializer=keras.initializers.Constant(0.25))

    def call(self, x: Any) -> Any:
        """Return x where it is positive, and weight * x elsewhere."""
        return ops.where(x > 0, x, ops.cast(self.weight, x.dtype) * x)

    def get_config(self) -> dict[str, Any]:
        """Return the config. Defined here because Keras's default does not accept a dtype policy as an argument."""
        return super().get_config()


@register
class MaxPool(keras.layers.Layer):
    """Max pooling with stride = window, whose last window may be smaller: (N, *S, C) -> (N, *ceil(S / window), C)."""

    def __init__(self, window: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window = tuple(window)

    def call(self, x: Any) -> Any:
        """Return the maxima over windows of x, (N, *ceil(S / window), C)."""
        if wide(x.dtype) != "float64":
            for axis, width in enumerate(self.window, start=1):
                if width > 2:   # "same" would also pad before the first pixel
                    n = ops.shape(x)[axis]
                    positions = ops.arange((n + width - 1) // width * width, dtype="int32")
                    x = ops.take(x, ops.minimum(positions, n - 1), axis)
            return ops.max_pool(x, self.window, self.window, padding="same", data_format="channels_last")
        for axis, width in enumerate(self.window, start=1):   # TensorFlow does not pool volumes in float64
            n = ops.shape(x)[axis]
            first_indices = width * ops.arange((n + width - 1) // width, dtype="int32")
            x = reduce(ops.maximum, [ops.take(x, ops.minimum(first_indices + k, n - 1), axis) for k in range(width)])
        return x

    def compute_output_shape(self, x: Any) -> Any:
        """Return the output shape for the input shape `x`."""
        return (x[0], *(n and -(-n // w) for n, w in zip(x[1:-1], self.window, strict=True)), x[-1])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {"window": self.window}


@register
class Crop(keras.layers.Layer):
    """Crop the first input, from `start`, to `scale` times the size of the second.

    Shapes: [(N, *S, C), (N, *T, D)] -> (N, *(scale T), C).
    """

    def __init__(self, start: Any, scale: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start, self.scale = start, scale

    def call(self, inputs: Any) -> Any:
        """Return the cropped first input; inputs: [(N, *S, C), (N, *T, D)]."""
        x, reference = inputs
        dims = x.ndim - 2
        starts, scales = ([n] * dims if isinstance(n, int) else n for n in (self.start, self.scale))
        ends = [start + scale * n for start, scale, n in zip(starts, scales, sizes(reference), strict=True)]
        return x[(slice(None), *(slice(start, end) for start, end in zip(starts, ends, strict=True)))]

    def compute_output_shape(self, shapes: Any) -> Any:
        """Return the output shape for both input shapes."""
        x, reference = shapes
        scales = [self.scale] * (len(x) - 2) if isinstance(self.scale, int) else self.scale
        return (x[0], *(n and n * s for n, s in zip(reference[1:-1], scales, strict=True)), x[-1])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {"start": self.start, "scale": self.scale}


@register
class Widen(keras.layers.Layer):
    """Repeat the last pixel of each axis up to a minimum size: (N, *S, C) -> (N, *max(S, least), C)."""

    def __init__(self, least: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.least = tuple(least)

    def call(self, x: Any) -> Any:
        """Return x with the last pixel of each axis repeated up to the minimum size."""
        for axis, low in enumerate(self.least, start=1):
            if x.shape[axis] is None or x.shape[axis] < low:
                n = ops.shape(x)[axis]
                x = ops.take(x, ops.minimum(ops.arange(ops.maximum(n, low), dtype="int32"), n - 1), axis)
        return x

    def compute_output_shape(self, x: Any) -> Any:
        """Return the output shape for the input shape `x`."""
        return (x[0], *(n and max(n, low) for n, low in zip(x[1:-1], self.least, strict=True)), x[-1])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {"least": self.least}


@register
class Upsample(keras.layers.Layer):
    """Upsample by linear interpolation: (N, *S, C) -> (N, *(scale S), C)."""

    def __init__(self, scale: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x: Any) -> Any:
        """Return x upsampled by linear interpolation."""
        return resize(x, [n * s for n, s in zip(sizes(x), self.scale, strict=True)], "linear", align_corners=False)

    def compute_output_shape(self, x: Any) -> Any:
        """Return the output shape for the input shape `x`."""
        return (x[0], *(n and n * s for n, s in zip(x[1:-1], self.scale, strict=True)), x[-1])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return super().get_config() | {"scale": self.scale}


@register
class ResizeLike(keras.layers.Layer):
    """Resize the first input to the size of the second linearly: [(N, *S, C), (N, *T, D)] -> (N, *T, C)."""

    def call(self, inputs: Any) -> Any:
        """Return the first input resized to the size of the second; inputs: [(N, *S, C), (N, *T, D)]."""
        return resize(inputs[0], sizes(inputs[1]), "linear", align_corners=False)

    def compute_output_shape(self, shapes: Any) -> Any:
        """Return the output shape for both input shapes."""
        return (*shapes[1][:-1], shapes[0][-1])

    def get_config(self) -> dict[str, Any]:
        """Return the config. Defined here because Keras's default does not accept a dtype policy as an argument."""
        return super().get_config()
