"""Find and initialise the weights of a block in Keras."""

from __future__ import annotations

from typing import Any

from ...contract import Weight
from ..common.keras import keras, ops


def find(layer: Any, name: str) -> Any:
    """Return the variable with canonical `name`, such as "channel.excite.weight".

    Canonical names are the keys of a spec's `weights`. Their "weight" is the attribute `kernel` of Keras's own layers.
    """
    return getattr(*locate(layer, name))


def locate(layer: Any, name: str) -> tuple[Any, str]:
    """Return the layer inside `layer` that has the variable with canonical `name`, and the name of its attribute."""
    path, _, leaf = name.rpartition(".")
    if isinstance(layer, keras.Model):   # the path of a layer in it is the beginning of `path`
        candidates = [(path_of(part), part) for part in layer.layers if f"{path}.".startswith(f"{path_of(part)}.")]
        layer_path, layer = max(candidates, key=lambda pair: len(pair[0]))
        path = path[len(layer_path) + 1 :]
    for step in filter(None, path.split(".")):
        layer = getattr(layer, "output_" if step == "output" else step)   # Keras has an `output` of its own
    return layer, "kernel" if leaf == "weight" and hasattr(layer, "kernel") else leaf


def path_of(layer: Any) -> str:
    """Return the canonical path of a layer if it has one, else its name."""
    return str(getattr(layer, "canonical", layer.name))


def initialize(weight: Weight | None) -> Any:
    """Return the Keras initializer for a `Weight`; zeros for None."""
    if weight is None:
        return keras.initializers.Zeros()
    if weight.initialization == "uniform":
        return keras.initializers.RandomUniform(weight.center - weight.scale, weight.center + weight.scale)
    if weight.initialization == "normal":
        return keras.initializers.RandomNormal(weight.center, weight.scale)
    if weight.initialization == "orthogonal":
        return keras.initializers.Orthogonal(weight.scale)
    return keras.initializers.Constant(weight.center)


def reinitialize(variable: Any, weight: Weight) -> None:
    """Assign new initial values to a variable, as `weight` describes them."""
    shape = weight.size // weight.shape[0], weight.shape[0]   # inputs x outputs
    new_values = initialize(weight)(shape, dtype=variable.dtype)
    new_values = new_values if variable.name == "kernel" else ops.transpose(new_values)
    variable.assign(ops.reshape(new_values, variable.shape))
