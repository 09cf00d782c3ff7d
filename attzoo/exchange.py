"""Read and write weights in the layouts of other libraries, which `sources.py` in each block's folder describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .adapters import adapter, framework_of, same_shape
from .contract import AnySpec, Array, Keys, Source, Unsupported, contiguous, shorten
from .sizes import change_text

WRAPPERS = ("module.", "_orig_mod.")   # prefixes of DataParallel and of torch.compile
STATES: Final[Mapping[str | None, str]] = {   # framework of what was passed instead of a state dict -> remedy
    "torch": "pass its state_dict()",
    "keras": "pass {v.path: v for v in model.weights}",
    None: "load the file first",
}
COUNTER = "num_batches_tracked"   # a buffer of batch norm, which the output does not depend on


def read_arrays(state: Mapping[str, Array], source: Source) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays of a source's block by attzoo's names, and the arguments that their shapes determine.

    Args:
        state: the state dict of the source's block, as arrays. Entries that `source` does not name are ignored.
        source: the other library's block.

    """
    arrays = {name: state[key] for name, key in source.names.items() if key in state}
    return arrays, dict(source.read({name: array.shape for name, array in arrays.items()}))


def fits(arrays: Mapping[str, Array], spec: AnySpec) -> bool:
    """Whether arrays have the names and shapes of a spec's weights; axes of size 1 may be missing or added."""
    weights = spec.weights
    return arrays.keys() == weights.keys() and all(
        same_shape(arrays[name].shape, weight.shape) for name, weight in weights.items()
    )


def as_declared(arrays: Mapping[str, Array], spec: AnySpec) -> dict[str, Array]:
    """Return arrays by name in the shapes that a spec declares, with axes of size 1 removed or added."""
    return {name: np.reshape(arrays[name], weight.shape) for name, weight in spec.weights.items()}


def arrays_from(
    state: Mapping[str, Any],
    spec: AnySpec,
    layouts: Sequence[Keys],
    source: str,
    unsupported: Sequence[Unsupported] = (),
) -> dict[str, Array]:
    """Return the arrays of a block by canonical names from a state dict of another library.

    Args:
        state: tensors or arrays by key, as `unwrapped` returns them. The keys of all arrays may have a common prefix.
        spec: the spec of the block.
        layouts: the layouts in which the source stores the block.
        source: the name of the source, for errors.
        unsupported: modules of libraries that are recognised, for errors with the reason.

    Raises:
        ValueError: keys are missing, or the state dict contains several blocks, arrays that attzoo's block does not
            have, or a tensor without values.

    """
    blocks = stored_blocks(state, spec, layouts) if spec.weights else [StoredBlock("", layouts[0])]
    _check_supported(state, [block.prefix for block in blocks], unsupported)
    if len(blocks) > 1:
        fix = f"give those whose keys begin with {blocks[0].prefix!r}, for example"
        raise ValueError(f"expected the arrays of one block, got {len(blocks)}: {fix}")
    if not blocks:
        expected = " or ".join(shorten(", ".join(_names(layout, spec).values()), 200) for layout in layouts)
        nested = next((key for key, value in state.items() if isinstance(value, Mapping)), None)
        fix = "" if nested is None else f"pass the mapping in the entry {shorten(repr(nested))} instead"
        fix = fix or remedy_for_layouts(state, spec, layouts, source)
        got = f"{shorten(', '.join(state), 300)}{fix and ': ' + fix}"
        raise ValueError(f"expected the keys of {source}, {expected}, got {got}")
    (block,) = blocks
    if not block.layout.channels_last:   # the layers of a block in Keras have no layer around them
        _check_no_other_arrays(state, block, spec, source)
    _check_shapes(state, block, spec, source)
    return {name: _read(state[key], name, block.layout, spec) for name, key in block.keys(spec).items()}


@dataclass(frozen=True)
class StoredBlock:
    """A block in a state dict of another library.

    Args:
        prefix: what the keys of its arrays begin with.
        layout: how its arrays are stored.

    """

    prefix: str
    layout: Keys

    def keys(self, spec: AnySpec) -> dict[str, str]:
        """Return the key in the state dict of every array of a block by canonical name."""
        return {name: self.prefix + key for name, key in _names(self.layout, spec).items()}


def stored_blocks(
    state: Mapping[str, Any], spec: AnySpec, layouts: Sequence[Keys], same_shapes: bool = False
) -> list[StoredBlock]:
    """Return the blocks with all arrays of a spec in a state dict, for each layout in the order of the state dict.

    same_shapes: whether the arrays must have the shapes of the spec.
    """
    blocks: list[StoredBlock] = []
    for layout in layouts:
        first_key = next(iter(_names(layout, spec).values()))
        prefixes = [prefix for key in state if (prefix := _prefix(key, first_key, layout)) is not None]
        candidates = [StoredBlock(prefix, layout) for prefix in prefixes]
        blocks += [block for block in candidates if all(key in state for key in block.keys(spec).values())]
    return [block for block in blocks if not same_shapes or _has_shapes(state, block, spec)]


def _has_shapes(state: Mapping[str, Any], block: StoredBlock, spec: AnySpec) -> bool:
    """Whether the arrays of a block in a state dict have the shapes of a spec, up to axes of size 1."""
    weights, shapes = spec.weights, _shapes(state, block.prefix, block.layout)
    return all(same_shape(shapes[name], weights[name].shape) for name in block.keys(spec))


def _shapes(state: Mapping[str, Any], prefix: str, layout: Keys) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays with a prefix and the keys of a layout, as `shapes_from` does."""
    keys = {name: prefix + key for name, key in layout.names.items()}
    return {name: _axes_first(_shape(state[key]), layout) for name, key in keys.items() if key in state}


def remedy_for_layouts(state: Mapping[str, Any], spec: AnySpec, layouts: Sequence[Keys], source: str) -> str:
    """Return the arguments of the block that fit a state dict with one block of another size, as the end of an error.

    Returns "" if there are no such arguments, or the state dict has no block or several ones.
    """
    blocks = {
        (prefix, i): None for i, layout in enumerate(layouts) for key in state for name in layout.names.values()
        if (prefix := _prefix(key, name, layout)) is not None
    }   # fmt: skip
    if len(blocks) > len(layouts):
        return ""
    remedies = (remedy(state, StoredBlock(prefix, layouts[i]), spec, source) for prefix, i in blocks)
    return next(filter(None, remedies), "")


def remedy(state: Mapping[str, Any], block: StoredBlock, spec: AnySpec, source: str) -> str:
    """Return the arguments with which the block has the arrays of a block in a state dict, as the end of an error.

    Returns "" if there are none, or the block in the state dict has further arrays.
    """
    keys = {block.prefix + key for key in block.layout.names.values()}
    own_keys = [key for key in state if key.startswith(block.prefix) and not key.endswith(COUNTER)]
    if not block.layout.channels_last and not keys.issuperset(own_keys):
        return ""
    return change_text(_shapes(state, block.prefix, block.layout), spec, source)


def _check_shapes(state: Mapping[str, Any], block: StoredBlock, spec: AnySpec, source: str) -> None:
    """Raise ValueError unless a block in a state dict has the shapes of a spec, up to axes of size 1."""
    if _has_shapes(state, block, spec):
        return
    shapes, weights = _shapes(state, block.prefix, block.layout), spec.weights
    name = next(name for name in block.keys(spec) if not same_shape(shapes[name], weights[name].shape))
    _array(state[block.keys(spec)[name]], name)   # raises for a tensor without values
    fix = remedy(state, block, spec, source)
    expected = f"{block.layout.names[name]} of shape {weights[name].shape}, up to axes of size 1"
    raise ValueError(f"expected {expected}, got {shapes[name]}{fix and ': ' + fix}")


def _check_supported(state: Mapping[str, Any], prefixes: Sequence[str], unsupported: Sequence[Unsupported]) -> None:
    """Raise ValueError if the block in a state dict is a module that attzoo's block cannot represent.

    prefixes: those of the blocks with the expected keys. If there are none, every prefix is tried.
    """
    for module in unsupported:
        first_key = next(iter(module.keys))
        module_prefixes = [prefix for key in state if (prefix := _prefix(key, first_key, Keys({}))) is not None]
        for prefix in module_prefixes:
            keys = {prefix + key: shape for key, shape in module.keys.items()}
            is_same = all(key in state and _has_pattern(state[key], shape) for key, shape in keys.items())
            if is_same and (prefix in prefixes or not prefixes):
                raise ValueError(f"expected weights that the block can have, got those of {module}")


def _has_pattern(array: Any, pattern: Sequence[int | None]) -> bool:
    """Whether the shape of an array is a pattern, in which None is any size; an empty pattern is any shape."""
    shape = _shape(array)
    return not pattern or (
        len(shape) == len(pattern) and all(size in (None, n) for n, size in zip(shape, pattern, strict=True))
    )


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a value of a state dict, () for a number and for a parameter of torch without values."""
    try:
        return tuple(value.shape) if hasattr(value, "shape") else np.shape(value)
    except RuntimeError:   # an uninitialized parameter
        return ()


def shapes_from(state: Mapping[str, Any], layouts: Sequence[Keys]) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of a block's arrays by canonical name, with output and input channels as first axes.

    Returns None if the state dict does not contain a block, or also contains other arrays.

    Args:
        state: tensors or arrays by key. The keys may have a common prefix.
        layouts: the layouts in which the block may be stored.

    """
    for layout in layouts:
        for prefix in {_prefix(key, name, layout) for key in state for name in layout.names.values()} - {None}:
            keys = {name: f"{prefix}{key}" for name, key in layout.names.items() if f"{prefix}{key}" in state}
            if set(keys.values()) == set(state):
                shapes = {name: tuple(state[key].shape) for name, key in keys.items()}
                return {name: _axes_first(shape, layout) for name, shape in shapes.items()}
    return None


def _axes_first(shape: tuple[int, ...], layout: Keys) -> tuple[int, ...]:
    """Return an array's shape with output and input channels as first axes; in Keras's layout they are the last two."""
    return (*shape[:-3:-1], *shape[:-2]) if layout.channels_last and len(shape) > 1 else shape


def arrays_for(arrays: Mapping[str, Array], spec: AnySpec, layout: Keys) -> dict[str, Array]:
    """Return the arrays of a block with the keys and shapes of another library.

    Raises ValueError if the layout has no key for an array.

    Args:
        arrays: the arrays by canonical name.
        spec: the spec of the block.
        layout: the layout of the other library.

    """
    if unknown := [name for name in arrays if name not in layout.names]:
        got = f"{shorten(', '.join(unknown))}: export a block without them"
        raise ValueError(f"expected only arrays that the target also has, got {got}")
    return {layout.names[name]: _to_layout(array, name, layout, spec) for name, array in arrays.items()}


def _names(layout: Keys, spec: AnySpec) -> dict[str, str]:
    """Return canonical name -> key of a layout, for the arrays that a block has."""
    return {name: key for name, key in layout.names.items() if name in spec.weights}


def unwrapped(state: Any) -> dict[str, Any]:
    """Return a state dict whose keys have no prefixes of wrappers.

    A checkpoint that has a state dict in one of its entries, and no arrays in others, is opened.

    Raises:
        TypeError: `state` is not a mapping whose keys are strings.
        ValueError: two keys become the same, or a checkpoint has several state dicts.

    """
    state = _without_entries(state)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        got = type(state).__name__ if not isinstance(state, Mapping) else "keys that are not strings"
        fix = STATES[framework_of(state)]
        raise TypeError(f"expected a state dict, whose keys are names of arrays, got {got}: {fix}")
    original_keys: dict[str, str] = {}
    for key in state:
        name = without_wrappers(key)
        if name in original_keys:
            raise ValueError(f"expected the arrays of one block, got both {original_keys[name]} and {key}: remove one")
        original_keys[name] = key
    return {name: state[key] for name, key in original_keys.items()}


def _without_entries(checkpoint: Any) -> Any:
    """Return the only state dict in the entries of a checkpoint; the checkpoint itself if it has no state dict."""
    is_named = isinstance(checkpoint, Mapping) and all(isinstance(key, str) for key in checkpoint)
    if not is_named or any(hasattr(value, "shape") for value in checkpoint.values()):
        return checkpoint
    entries = [
        key for key, value in checkpoint.items()
        if isinstance(value, Mapping) and any(hasattr(array, "shape") for array in value.values())
    ]   # fmt: skip
    if len(entries) > 1:
        got = f"{shorten(', '.join(map(repr, entries)))}: pass one of these entries"
        raise ValueError(f"expected a checkpoint with one state dict, got {got}")
    return checkpoint[entries[0]] if entries else checkpoint


def without_wrappers(path: str) -> str:
    """Return a key or path without the prefixes of wrappers.

    >>> without_wrappers("module.layer1._orig_mod.weight")
    'layer1.weight'
    """
    for wrapper in WRAPPERS:
        path = path.removeprefix(wrapper).replace(f".{wrapper}", ".")
    return path


def _prefix(key: str, name: str, layout: Keys) -> str | None:
    """Return the part of `key` before `name`, the key of an array in a layout; None if `key` does not end with it.

    The prefix is "" or ends with a dot, or in Keras with a slash or an underscore.
    """
    prefix = key.removesuffix(name)
    separators = ("", "/", "_") if layout.channels_last else ("", ".")
    return prefix if key.endswith(name) and prefix[-1:] in separators else None


def _check_no_other_arrays(state: Mapping[str, Any], block: StoredBlock, spec: AnySpec, source: str) -> None:
    """Raise ValueError if the block in a state dict has further arrays, and so computes another function."""
    keys_of_block = block.keys(spec).values()
    for key in state:
        if key.startswith(block.prefix) and key not in keys_of_block and not key.endswith(COUNTER):
            fix = remedy(state, block, spec, source) or "create the block with arguments that give it this array"
            fix += ", or give only the arrays of the block"
            raise ValueError(f"expected only arrays of the block from {source}, got also {key}: {fix}")


def _read(value: Any, name: str, layout: Keys, spec: AnySpec) -> Array:
    """Return another library's array as attzoo's array `name`: in the spec's shape, the plane of the mean first.

    value: the array or tensor, of this shape up to axes of size 1. layout: how the library stores it. Raises ValueError
    if NumPy cannot read it.
    """
    array, shape = _array(value, layout.names[name]), spec.weights[name].shape
    if layout.channels_last and array.ndim > 1:   # (*k, I, O)
        array = np.moveaxis(array, (-1, -2), (0, 1))
    array = array.reshape(shape)
    return contiguous(array[:, ::-1] if name in layout.max_first else array)


def _array(value: Any, key: str) -> Array:
    """Return a torch tensor, or a value that NumPy can read, as an array; bfloat16 as float32. key: for the error."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    torch: Any = adapter("torch")   # torch is loaded already, because the value is its tensor
    try:
        return np.asarray(torch.to_array(value))
    except (NotImplementedError, RuntimeError, TypeError) as err:
        fix = "give a dense floating-point tensor with values"
        expected = f"expected {key} to be a tensor that NumPy can read"
        raise ValueError(f"{expected}, got {value.dtype} on {value.device}: {fix}") from err


def _to_layout(array: Array, name: str, layout: Keys, spec: AnySpec) -> Array:
    """Return attzoo's array `name` in the shape and with the order of input planes of another library's `layout`."""
    if name in layout.max_first:
        array = array[:, ::-1]
    if array.ndim == 1:
        before, after = layout.vectors.get(name, (0, 0))
        return contiguous(array.reshape((1,) * before + array.shape + (1,) * after))
    axes = layout.axes.get(name, 0) if isinstance(layout.axes, Mapping) else layout.axes
    axes = getattr(spec, "spatial_dims", 2) if axes is None else axes
    if name.endswith(".weight") and array.ndim == 2:
        array = array.reshape(*array.shape, *(1,) * axes)
    if layout.channels_last and array.ndim > 1:
        array = np.moveaxis(array, (0, 1), (-1, -2))
    return contiguous(array)
