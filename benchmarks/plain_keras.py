"""Models of blocks as one writes them straightforwardly in Keras, of its own layers: what attzoo's are timed against.

The block NAME is the function NAME in keras_blocks/NAME.py, of its spec and its inputs. Functional models, made in the
data format and dtype policy that Keras is set to. Layers are named by the canonical paths of their weights, with "_"
for ".".
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
    """The model for a block's spec and the shapes of its inputs, (N, C, H, W). Raises ValueError for what it has not.

    Any batch size is taken.
    """
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(f"expected images, got inputs of shapes {shapes}")
    last = axis() == -1
    sizes = [(*space, channels) if last else (channels, *space) for _, channels, *space in shapes]
    outputs_of = getattr(import_module(f"{__package__}.keras_blocks.{block}"), block)
    inputs = [keras.Input(size, dtype=keras.config.dtype_policy().compute_dtype) for size in sizes]
    model = keras.Model(inputs, outputs_of(spec, *inputs))
    model.spec, model.data_format = spec, keras.config.image_data_format()
    return model


def axis() -> int:
    """Where the channels are."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def per_channel(z: Any) -> Any:
    """(N, C), shaped to multiply an image."""
    return layers.Reshape((1, 1, z.shape[-1]) if axis() == -1 else (z.shape[-1], 1, 1))(z)


def norm(name: str) -> Any:
    """A batch norm that begins as torch's does."""
    return layers.BatchNormalization(axis(), momentum=0.9, epsilon=1e-5, name=name)


def resample(g: Any, x: Any, interpolation: str) -> Any:
    """Bring g to x's size, which must be a multiple of its own."""
    space = slice(1, 3) if axis() == -1 else slice(2, 4)
    old, new = g.shape[space], x.shape[space]
    if old == new:
        return g
    if any(b % a for a, b in zip(old, new, strict=True)):
        raise ValueError(f"expected sizes that are multiples of {old}, got {new}")
    factors = tuple(b // a for a, b in zip(old, new, strict=True))
    return layers.UpSampling2D(factors, interpolation={"linear": "bilinear"}.get(interpolation, interpolation))(g)


# ---- weights ---------------------------------------------------------------------------------------------------------


def find(model: Any, name: str) -> Any:
    """The variable that holds a canonical array."""
    path, _, leaf = name.rpartition(".")
    layer = model.get_layer(path.replace(".", "_"))
    if isinstance(layer, layers.BatchNormalization):
        return getattr(layer, NORM[leaf])
    return layer.kernel if leaf == "weight" else layer.bias


def load(model: Any, arrays: Mapping[str, Array]) -> None:
    """Give a model these arrays, by canonical name."""
    for name, array in arrays.items():
        variable = find(model, name)
        variable.assign(as_kernel(array, variable.shape) if variable.name == "kernel" else array)


def as_kernel(array: Array, shape: Sequence[int]) -> Array:
    """(O, I, *k), without axes of 1 or with them, as Keras has it: (*k, I, O)."""
    return np.moveaxis(array.reshape(*shape[:-3:-1], *shape[:-2]), (0, 1), (-1, -2))
