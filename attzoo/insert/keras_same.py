"""Blocks that compute what several layers of a Keras model compute, such as the SE of an EfficientNet.

Such layers end in a Multiply of x and of coefficients, which a block replaces; the other layers are no longer called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from .. import registry
from ..contract import Array
from ..exchange import shapes_from
from ..ops.keras import keras
from ..portable import load_weights
from .create import images

LIBRARY: Final = "keras"   # the name of the source


def is_product(layer: Any) -> bool:
    """Whether a layer multiplies x by coefficients that are the same at every position."""
    if type(layer) is not keras.layers.Multiply or len(layer.input) != 2:
        return False
    x, coefficients = (tuple(tensor.shape) for tensor in layer.input)
    channels = {x[1], x[-1]} & {coefficients[1], coefficients[-1]}
    return len(x) == len(coefficients) > 2 and bool(channels) and coefficients.count(1) >= len(x) - 2


def same_block(layer: Any, name: str, options: Mapping[str, Any], create: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Return a block with the weights of the layers before a product if there is one that computes the same, else None.

    Args:
        layer: the product.
        name: the block.
        options: arguments of the block that were asked for, which override those of the layers.
        create: makes the block from its arguments but for the channels.

    """
    layouts, sources = registry.keys(name).get(LIBRARY, ()), registry.sources(name)
    try:
        part = keras.Model(layer.input[0], layer.output)
    except ValueError:   # the coefficients depend on other tensors than x
        return None
    shapes = shapes_from(_state(part), layouts)
    if shapes is None:
        return None
    source, compare = next(iter(sources.values())), _comparison(part)
    told = {key: value for key, value in source.read(shapes).items() if key != "channels"}
    for choice in source.choices:
        arguments = {**choice, **told, **options}
        if compare(create(arguments)):
            block = create(arguments)
            load_weights(block, _state(part), source=LIBRARY)
            block.trainable = any(each.trainable for each in part.layers if each.weights)
            return block
    return None


def _state(model: Any) -> dict[str, Any]:
    """Return the variables of a model by path."""
    return {variable.path: variable for variable in model.weights}


def _comparison(part: Any) -> Callable[[Any], bool]:
    """Return a function that says whether a block returns what layers do, for random weights and images.

    Both are also compared in training, where layers such as Dropout change their outputs.
    """
    rng = np.random.default_rng(0)
    twin = keras.models.clone_model(part)
    twin.set_weights([rng.normal(size=variable.shape) for variable in twin.weights])
    sizes = [size or 6 for size in part.input.shape[1:]]

    def outputs(layer: Any, channels_last: bool) -> Array:
        """Return the outputs of a block or of the layers in evaluation and in training."""
        x = images((sizes[-1], *sizes[:-1]) if channels_last else tuple(sizes))
        x = np.moveaxis(x, 1, -1) if channels_last else x
        ys = [layer(x.astype(np.float32), training=training) for training in (False, True)]
        return np.stack([np.asarray(keras.ops.convert_to_numpy(y), np.float64) for y in ys])

    def compare(block: Any) -> bool:
        try:
            load_weights(block, _state(twin), source=LIBRARY)
        except ValueError:   # the block has other arrays
            return False
        expected = outputs(twin, block.channels_last)
        return bool(np.allclose(outputs(block, block.channels_last), expected, rtol=1e-3, atol=1e-4))

    return compare
