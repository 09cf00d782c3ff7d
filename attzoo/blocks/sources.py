"""Functions for the `sources.py` of blocks: keys of other libraries' weights, and arguments from shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

NORM: Final = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def linear(**layers: str) -> dict[str, str]:
    """Return the keys in a library of the weights and biases of linear maps and convolutions, by name in attzoo.

    layers: names of layers in the library by their names in attzoo.

    >>> linear(squeeze="fc1")
    {'squeeze.weight': 'fc1.weight', 'squeeze.bias': 'fc1.bias'}
    """
    return {f"{part}.{kind}": f"{layer}.{kind}" for part, layer in layers.items() for kind in ("weight", "bias")}


def keras_layers(**layers: str) -> dict[str, str]:
    """Return the keys in a library of the kernels and biases of Keras layers, by name in attzoo.

    layers: names of layers in the library by their names in attzoo.

    >>> keras_layers(squeeze="se_reduce")
    {'squeeze.weight': 'se_reduce/kernel', 'squeeze.bias': 'se_reduce/bias'}
    """
    ends = {"weight": "kernel", "bias": "bias"}
    return {f"{part}.{kind}": f"{layer}/{name}" for part, layer in layers.items() for kind, name in ends.items()}


def norm(**layers: str) -> dict[str, str]:
    """Return the keys in a library of the four arrays of batch norms, by name in attzoo.

    layers: names of layers in the library by their names in attzoo.

    >>> norm(norm="bn")["norm.mean"]
    'bn.running_mean'
    """
    return {f"{part}.{kind}": f"{layer}.{name}" for part, layer in layers.items() for kind, name in NORM.items()}


def only_channels(spec: Any) -> dict[str, Any]:
    """Return the arguments of a library's class that requires only the number of channels of a block's spec."""
    return {"channels": spec.channels}


def read_perceptron(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments of a block with squeeze and excite layers, from the shapes of its arrays by name."""
    channels, width = shapes["excite.weight"][:2]
    return {"channels": channels, "reduced_channels": width, "bias": "squeeze.bias" in shapes}


def read_kernel(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments of spatial attention without `channels`, from the shapes of its arrays by canonical name."""
    kernel = shapes["conv.weight"]
    return {"kernel_size": kernel[-1], "norm": "norm.weight" in shapes, "spatial_dims": len(kernel) - 2}
