"""Create blocks that compute the same as several layers of a Keras model, such as the SE of an EfficientNet.

The last of these layers is a Multiply of x and coefficients. A block replaces it, and the other layers are not called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from .. import registry
from ..contract import Array
from ..exchange import shapes_from
from ..ops.keras import keras
from ..portable import load_weights
from .create import candidate_arguments, images
from .keras_copy import copy_layer, has_graph, layers_of

LIBRARY: Final = "keras"   # the name of the source
LOST: Final = (   # settings of layers that blocks do not have
    "kernel_regularizer", "bias_regularizer", "activity_regularizer", "kernel_constraint", "bias_constraint",
)   # fmt: skip


def is_product(layer: Any) -> bool:
    """Whether a layer is a Multiply of x and coefficients that are the same at every position."""
    if type(layer) is not keras.layers.Multiply or len(layer.input) != 2:
        return False
    x, coefficients = (tuple(tensor.shape) for tensor in layer.input)
    channels = {x[1], x[-1]} & {coefficients[1], coefficients[-1]}
    return len(x) == len(coefficients) > 2 and bool(channels) and coefficients.count(1) >= len(x) - 2


def same_block(
    layer: Any, name: str, options: Mapping[str, Any], create: Callable[[Mapping[str, Any]], Any]
) -> tuple[Any, list[Any]]:
    """Return a block that computes the same as the layers before a product, and the layers whose weights it has.

    Return None and no layers if there is no such block. Raises ValueError if the block would lose settings of the
    layers.

    Args:
        layer: the product, a Multiply layer.
        name: name of the block.
        options: arguments of the block from the user, which override those of the layers, and its data_format.
        create: creates the block from its arguments without the channels.

    """
    layouts, sources = registry.keys(name).get(LIBRARY, ()), registry.sources(name)
    try:
        part = keras.Model(layer.input[0], layer.output)
    except ValueError:   # the coefficients depend on other tensors than x
        return None, []
    shapes = shapes_from(_state(part), layouts)
    if shapes is None:
        return None, []
    source = next(iter(sources.values()))
    try:
        from_shapes = source.read(shapes)
    except KeyError:   # a layer is missing
        return None, []
    is_same = _comparison(part, options["data_format"] == "channels_last")
    for arguments in candidate_arguments(name, source, from_shapes, options):
        if is_same(create(arguments | {"dtype": "float32"})):
            block = create(arguments)
            load_weights(block, _state(part), source=LIBRARY)
            layers = [inner for inner in layers_of(part).values() if inner.weights and not has_graph(inner)]
            block.trainable = _trainable(layers, options)
            return block, layers
    return None, []


def _trainable(layers: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Return `trainable` of a block with the weights of layers. Raise ValueError if it would lose their settings."""
    for layer in layers:
        if lost := [name for name in LOST if getattr(layer, name, None) is not None]:
            fix = f"set {lost[0]} of the layer to None first, and add the penalty to the loss if you need it"
            got = f"{layer.name!r} with {lost[0]}"
            raise ValueError(f"expected layers with settings that a block has too, got {got}: {fix}")
    frozen, trainable = ([x.name for x in layers if x.trainable is value] for value in (False, True))
    if frozen and trainable and "trainable" not in options:
        got = f"{frozen[0]!r} with trainable=False and {trainable[0]!r} with trainable=True: give trainable="
        raise ValueError(f"expected layers that are all frozen or all trainable, as a block is, got {got}")
    return bool(options.get("trainable", not frozen))


def _state(model: Any) -> dict[str, Any]:
    """Return the variables of a model by path."""
    return {variable.path: variable for variable in model.weights}


def _float32_copy(part: Any) -> Any:
    """Return a copy of a functional model with new weights that computes in float32, also if its layers have others."""
    inputs = keras.Input(part.input.shape[1:], dtype="float32")
    clone = partial(copy_layer, dtype="float32")
    return keras.models.clone_model(part, input_tensors=inputs, clone_function=clone)


def _comparison(part: Any, channels_last: bool) -> Callable[[Any], bool]:
    """Return a function that tells whether a float32 block and the model `part` have equal outputs for random data.

    Weights and inputs are random. Outputs in training are compared too, because layers such as Dropout change them.
    channels_last: the layout of the inputs of both.
    """
    rng = np.random.default_rng(0)
    random_part = _float32_copy(part)
    # Sums of many terms are scaled to those of 4 terms: the rounding errors of larger ones would exceed the tolerance.
    random_part.set_weights([
        rng.normal(size=variable.shape) / np.sqrt(max(1, np.prod(variable.shape[:-1]) / 4))
        for variable in random_part.weights
    ])
    sizes = [size or 6 for size in part.input.shape[1:]]
    x = images((sizes[-1], *sizes[:-1]) if channels_last else tuple(sizes))
    x = (np.moveaxis(x, 1, -1) if channels_last else x).astype(np.float32)

    def outputs(layer: Any) -> Array:
        """Return the outputs of a block or of the model for random inputs, in evaluation and in training."""
        ys = [layer(x, training=training) for training in (False, True)]
        return np.stack([np.asarray(keras.ops.convert_to_numpy(y), np.float64) for y in ys])

    expected = outputs(random_part)

    def is_same(block: Any) -> bool:
        """Return whether `block`, with the weights of the copy, has the expected output."""
        try:
            load_weights(block, _state(random_part), source=LIBRARY)
        except ValueError:   # the block has other arrays
            return False
        return bool(np.allclose(outputs(block), expected, rtol=1e-3, atol=1e-3))

    return is_same
