"""Build functional Keras models of the blocks from Keras's own layers, which attzoo's layers are timed against.

The function NAME(spec, *inputs) in keras_blocks/NAME.py returns the output of the block NAME. Models use Keras's
current data format and dtype policy. Layers are named by the canonical paths of their weights, with "_" for ".".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import numpy as np

from attzoo.contract import Array
from attzoo.ops.keras import keras

layers = keras.layers
NORM: Final = {"weight": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def build(block: str, spec: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Build the model of a block for inputs of any batch size.

    Args:
        block: name of the block.
        spec: the block's spec.
        shapes: shape of each input, (N, C, H, W).

    Raises:
        ValueError: the inputs are not images, or the plain block lacks an option of the spec.

    """
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(f"expected images, got inputs of shapes {shapes}")
    channels_last = axis() == -1
    sizes = [(*sizes, channels) if channels_last else (channels, *sizes) for _, channels, *sizes in shapes]
    function = getattr(import_module(f"{__package__}.keras_blocks.{block}"), block)
    inputs = [keras.Input(size, dtype=keras.config.dtype_policy().compute_dtype) for size in sizes]
    model = keras.Model(inputs, function(spec, *inputs))
    model.spec, model.data_format = spec, keras.config.image_data_format()
    return model


def axis() -> int:
    """Return the axis of the channels in Keras's current data format."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def per_channel(z: Any) -> Any:
    """Reshape (N, C) to (N, 1, 1, C) or (N, C, 1, 1), to multiply an image."""
    return layers.Reshape((1, 1, z.shape[-1]) if axis() == -1 else (z.shape[-1], 1, 1))(z)


def norm(name: str) -> Any:
    """Return a batch norm with torch's momentum and epsilon."""
    return layers.BatchNormalization(axis(), momentum=0.9, epsilon=1e-5, name=name)


def resample(g: Any, x: Any, interpolation: str) -> Any:
    """Upsample g to the spatial size of x by "linear" or "nearest" interpolation.

    Raises ValueError if that is not a multiple of g's size.
    """
    spatial_axes = slice(1, 3) if axis() == -1 else slice(2, 4)
    old, new = g.shape[spatial_axes], x.shape[spatial_axes]
    if old == new:
        return g
    if any(new_size % old_size for old_size, new_size in zip(old, new, strict=True)):
        raise ValueError(f"expected the size of x to be a multiple of that of g, {old}, got {new}")
    factors = tuple(b // a for a, b in zip(old, new, strict=True))
    return layers.UpSampling2D(factors, interpolation={"linear": "bilinear"}.get(interpolation, interpolation))(g)


# ---- weights ---------------------------------------------------------------------------------------------------------


def find(model: Any, name: str) -> Any:
    """Return the variable of a model that holds the weight of this canonical name."""
    path, _, attribute = name.rpartition(".")
    layer = model.get_layer(path.replace(".", "_"))
    if isinstance(layer, layers.BatchNormalization):
        return getattr(layer, NORM[attribute])
    return layer.kernel if attribute == "weight" else layer.bias


def load(model: Any, arrays: Mapping[str, Array]) -> None:
    """Set the weights of a model from arrays by canonical name."""
    for name, array in arrays.items():
        variable = find(model, name)
        variable.assign(as_kernel(array, variable.shape) if variable.name == "kernel" else array)


def as_kernel(array: Array, shape: Sequence[int]) -> Array:
    """Transpose (O, I, *k), whose axes of size 1 may be missing, to Keras's kernel shape (*k, I, O)."""
    return np.moveaxis(array.reshape(*shape[:-3:-1], *shape[:-2]), (0, 1), (-1, -2))
