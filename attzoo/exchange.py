"""Weights of other libraries, by the tables of `sources.py` in each block's folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from .contract import AnySpec, Array, Keys, Source, contiguous, shorten

WRAPPERS = ("module.", "_orig_mod.")   # prefixes of DataParallel and of torch.compile
LEAVES = ("weight", "bias", "running_mean", "running_var")


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


def arrays_from(state: Mapping[str, Any], spec: AnySpec, layouts: Sequence[Keys], source: str) -> dict[str, Array]:
    """Return the arrays of a block by canonical names from a state dict of another library.

    Args:
        state: tensors or arrays by key. The keys of all arrays may have a common prefix.
        spec: the spec of the block.
        layouts: the layouts in which the source stores the block.
        source: the name of the source, for errors.

    Raises:
        ValueError: keys are missing, or the state dict holds several blocks, or arrays that attzoo's block lacks.

    """
    state = {_unwrapped(key): value for key, value in state.items()}
    for layout in layouts:
        names = {ours: theirs for ours, theirs in layout.names.items() if ours in spec.weights}
        first = next(iter(names.values()))
        prefixes = [key.removesuffix(first) for key in state if key.endswith(first)]
        complete = [prefix for prefix in prefixes if all(prefix + key in state for key in names.values())]
        if len(complete) > 1:
            fix = f"give those whose keys begin with {complete[0]!r}, for example"
            raise ValueError(f"expected the arrays of one block, got {len(complete)}: {fix}")
        if complete:
            _refuse_others(state, complete[0], names.values(), source)
            return {ours: _read(state[complete[0] + key], ours, layout, spec) for ours, key in names.items()}
    expected = " or ".join(shorten(", ".join(_names(layout, spec)), 200) for layout in layouts)
    raise ValueError(f"expected the keys of {source}, {expected}, got {shorten(', '.join(state), 300)}")


def arrays_for(arrays: Mapping[str, Array], spec: AnySpec, layout: Keys) -> dict[str, Array]:
    """Return the arrays of a block as another library stores them. Raise ValueError if it has no key for one."""
    if unknown := [name for name in arrays if name not in layout.names]:
        raise ValueError(f"expected a block without {shorten(', '.join(unknown))}, which the target has no keys for")
    return {layout.names[name]: _written(array, name, layout, spec) for name, array in arrays.items()}


def _names(layout: Keys, spec: AnySpec) -> list[str]:
    return [theirs for ours, theirs in layout.names.items() if ours in spec.weights]


def _unwrapped(key: str) -> str:
    """Return a key without the prefixes of wrappers."""
    for prefix in WRAPPERS:
        key = key.removeprefix(prefix).replace(f".{prefix}", ".")
    return key


def _refuse_others(state: Mapping[str, Any], prefix: str, known: Collection[str], source: str) -> None:
    """Raise ValueError if a layer of the block has further arrays: the block would compute another function."""
    layers = {key.rpartition(".")[0] for key in known}
    for key in state:
        layer, _, leaf = key.removeprefix(prefix).rpartition(".")
        if key.startswith(prefix) and layer in layers and f"{layer}.{leaf}" not in known and leaf in LEAVES:
            raise ValueError(f"expected only arrays of the block from {source}, got also {key}: create it with them")


def _read(value: Any, name: str, layout: Keys, spec: AnySpec) -> Array:
    """Return another library's array for our array `name`: in the spec's shape, the plane of the mean first.

    Raises ValueError for an array of another shape.
    """
    if hasattr(value, "detach"):   # a tensor of torch, which NumPy reads on a CPU, and not as bfloat16
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array, shape = np.asarray(value), spec.weights[name].shape
    if _wide(array.shape) != _wide(shape):
        raise ValueError(f"expected {layout.names[name]} of shape {shape}, up to axes of size 1, got {array.shape}")
    array = array.reshape(shape)
    return contiguous(array[:, ::-1] if name in layout.max_first else array)


def _written(array: Array, name: str, layout: Keys, spec: AnySpec) -> Array:
    """Return our array `name` in the shape and the order of planes of another library."""
    if name in layout.max_first:
        array = array[:, ::-1]
    if array.ndim == 1 and name.endswith("conv.weight"):   # ECA's kernel, (1, 1, k)
        return contiguous(array[None, None])
    axes = getattr(spec, "spatial_dims", 2) if layout.axes is None else layout.axes
    is_matrix = name.endswith(".weight") and array.ndim == 2
    return contiguous(array.reshape(*array.shape, *(1,) * axes) if is_matrix else array)
