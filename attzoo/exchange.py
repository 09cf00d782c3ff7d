"""Weights of other libraries, by the tables of `sources.py` in each block's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .contract import AnySpec, Array, Source


def read_arrays(state: Mapping[str, Array], source: Source) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays of a source's block by our names, and the arguments of our block that their shapes tell.

    Args:
        state: the state dict of the source's block, as arrays. Entries that `source` does not name are ignored.
        source: the other library's block.

    """
    arrays = {ours: state[theirs] for ours, theirs in source.names.items() if theirs in state}
    return arrays, dict(source.read({ours: array.shape for ours, array in arrays.items()}))


def fits(arrays: Mapping[str, Array], spec: AnySpec) -> bool:
    """Whether arrays have the names of a spec's weights and their shapes, up to axes of size 1."""
    weights = spec.weights
    return arrays.keys() == weights.keys() and all(
        _wide(arrays[name].shape) == _wide(weight.shape) for name, weight in weights.items()
    )


def as_declared(arrays: Mapping[str, Array], spec: AnySpec) -> dict[str, Array]:
    """Return arrays in the shapes that a spec declares, which may have fewer axes of size 1."""
    return {name: np.reshape(arrays[name], weight.shape) for name, weight in spec.weights.items()}


def _wide(shape: tuple[int, ...]) -> list[int]:
    """Return the sizes of a shape that are not 1."""
    return [size for size in shape if size != 1]
