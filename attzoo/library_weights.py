"""Read and write the weights of all blocks of a model with the keys of another library.

The keys of a block are found by the path of the block, or else by the order of the blocks in the state dict.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import registry
from .checkpoints import read_checkpoint
from .contract import Array, Keys, shorten, without_prefix
from .exchange import (
    StoredBlock,
    arrays_for,
    arrays_from,
    remedy,
    remedy_for_layouts,
    stored_blocks,
    unwrapped,
    without_wrappers,
)
from .parts import Part


@dataclass(frozen=True)
class PartState:
    """The part of a state dict with the arrays of one block.

    Args:
        state: arrays by key.
        path: what the keys begin with, without the separator; "" for the whole state dict.
        by: as in `parts.Match`.

    """

    state: Mapping[str, Any]
    path: str
    by: str


def read_parts(parts: Sequence[Part], state: Any, source: str) -> tuple[list[tuple[Part, Part, str]], dict[str, Array]]:
    """Read the arrays of blocks from a state dict of another library.

    Args:
        parts: the blocks of a model.
        state: the state dict, or the path of a checkpoint with it.
        source: name of the library, such as "timm".

    Returns:
        The matches and the arrays. A match is a block, the same block with its path in the state dict, and the
        criterion that matched them, `parts.Match.by`. The arrays are by their names in the whole model; those of
        "gamma", which no library has, keep their values.

    Raises:
        ValueError, TypeError: the state dict does not fit the blocks. For a block inside a model, the message begins
            with its path.

    """
    state = unwrapped(read_checkpoint(Path(state)) if isinstance(state, (str, os.PathLike)) else state)
    layouts = [layouts_of(part, "source", source) for part in parts]
    matches: list[tuple[Part, Part, str]] = []
    arrays: dict[str, Array] = {}
    for part, options, stored in zip(parts, layouts, _states(parts, layouts, state, source), strict=True):
        name = registry.name_of(part.spec)
        try:
            read = arrays_from(stored.state, part.spec, options, source, registry.unsupported(name))
        except (TypeError, ValueError) as err:
            if not part.path:
                raise
            raise type(err)(f"{part.path}: {err}") from err
        arrays |= {part.key(name): array for name, array in read.items()}
        if part.start == "identity":
            arrays[part.key("gamma")] = part.read()[part.key("gamma")]
        matches.append((part, replace(part, path=stored.path, holder=None), stored.by))
    return matches, arrays


def error_without_source(parts: Sequence[Part], weights: Any, err: ValueError) -> ValueError:
    """Return the error for weights that were refused and may be of another library, because `source` was not given.

    It names the libraries whose keys and shapes the weights have, or else all libraries that the blocks know. It is
    `err` if the weights have names of attzoo, or cannot be read.

    Args:
        parts: the blocks of the model.
        weights: the weights, or the path of their file.
        err: the error without `source`.

    """
    is_file = isinstance(weights, (str, os.PathLike))
    try:
        state = unwrapped(read_checkpoint(Path(weights)) if is_file else weights)
    except (ImportError, OSError, TypeError, ValueError):
        return err
    names = tuple(name for part in parts for name in part.weights)
    sources = [source for source in _sources(parts[0]) if all(source in _sources(part) for part in parts)]
    if not state or not sources or any(key.endswith(names) for key in state):
        return err
    got = shorten(", ".join(state), 200)
    message = f"expected weights {shorten(', '.join(names), 200)}, got {f'{weights} with ' if is_file else ''}{got}: "
    if same_keys := [source for source in sources if _is_readable(parts, state, source)]:
        return ValueError(f"{message}give source={' or source='.join(map(repr, same_keys))}, whose keys these are")
    fix = f"if they are of another library, give source=, one of {', '.join(map(repr, sources))}"
    return ValueError(f"{message if is_file else f'{err}; '}{fix}")


def _sources(part: Part) -> list[str]:
    """Return the names of the libraries whose weights a part can have."""
    try:
        return list(registry.keys(registry.name_of(part.spec)))
    except ValueError:   # the block is not registered
        return []


def _is_readable(parts: Sequence[Part], state: Any, source: str) -> bool:
    """Whether a state dict has the keys and shapes of a library for these parts."""
    try:
        read_parts(parts, state, source)
    except (OSError, TypeError, ValueError):
        return False
    return any(part.spec.weights for part in parts)


def write_parts(parts: Sequence[Part], target: str) -> dict[str, Array]:
    """Return the arrays of parts with the keys and shapes of another library. Raise ValueError if keys are the same."""
    exported: dict[str, Array] = {}
    for part in parts:
        prefix, layout = _prefix_and_layout(part, layouts_of(part, "target", target))
        arrays = without_prefix(part.path, part.read()) if part.path else part.read()
        keyed = {prefix + key: array for key, array in arrays_for(arrays, part.spec, layout).items()}
        if same := exported.keys() & keyed.keys():
            fix = "export each model in it"
            raise ValueError(f"expected blocks with different keys, got two with {min(same)}, at {part.path!r}: {fix}")
        exported |= keyed
    return exported


def layouts_of(part: Part, argument: str, name: str) -> tuple[Keys, ...]:
    """Return the layouts in which the library `name` stores a block. Raise ValueError if the library is unknown.

    `argument` is the name of the argument with `name`, "source" or "target", for the error.
    """
    block = registry.name_of(part.spec)
    layouts_by_library = registry.keys(block)
    for module in registry.unsupported(block):
        if name == module.library and name not in layouts_by_library:
            raise ValueError(f"expected a {argument} whose weights the block can have, got {module}")
    layouts = layouts_by_library[registry.known_name(f"{argument} of {block}", name, layouts_by_library)]
    layouts_of_spec: tuple[Keys, ...] = layouts(part.spec) if callable(layouts) else layouts
    return layouts_of_spec


def _prefix_and_layout(part: Part, layouts: Sequence[Keys]) -> tuple[str, Keys]:
    """Return the prefix of a part's keys and the layout to write: that of the layers that it replaced, or the first."""
    for layout in layouts:
        if (prefix := _layer_prefix(part.path, layout)) is not None:
            return prefix, layout
    return (f"{part.path}." if part.path else ""), layouts[0]


def _layer_prefix(path: str, layout: Keys) -> str | None:
    """Return the common prefix of the names of the Keras layers that the block at a path replaced; None if unknown.

    `swap` gives the block the name of the last of them.
    """
    name = path.rpartition(".")[2]
    if not layout.product or not name.endswith(layout.product):
        return None
    prefix = name.removesuffix(layout.product)
    return prefix if prefix.endswith(("_", "/")) or not prefix else None


# ---- the arrays of each block in a state dict ------------------------------------------------------------------------


def _states(
    parts: Sequence[Part], layouts: Sequence[tuple[Keys, ...]], state: Mapping[str, Any], source: str
) -> list[PartState]:
    """Return the part of a state dict for each block: by path if the state dict has any of the paths, or by order."""
    if len(parts) == 1 and not parts[0].path:
        return [PartState(state, "", "path")]
    pairs = [(part, options) for part, options in zip(parts, layouts, strict=True) if part.spec.weights]
    if len(pairs) < len(parts):   # the others have no arrays
        states = iter(_states([part for part, _ in pairs], [options for _, options in pairs], state, source))
        return [next(states) if part.spec.weights else PartState({}, part.path, "path") for part in parts]
    if not parts:
        return []
    outer_prefix = _outer_prefix(parts, layouts, state)
    by_path = [_state_at(part.path, outer_prefix, options, state) for part, options in zip(parts, layouts, strict=True)]
    if not any(stored.state for stored in by_path):
        return _in_order(parts, layouts, state, source)
    keys: dict[str, Part] = {}
    for part, stored in zip(parts, by_path, strict=True):
        for key in stored.state:
            if key in keys:
                got = f"{key} for both {keys[key].path!r} and {part.path!r}"
                raise ValueError(f"expected different keys for each block, got {got}: load each model in it")
            keys[key] = part
    return by_path


def _outer_prefix(parts: Sequence[Part], layouts: Sequence[tuple[Keys, ...]], state: Mapping[str, Any]) -> str:
    """Return what precedes the paths of all parts in keys, such as "model." of Lightning; "" if nothing."""
    paths = [without_wrappers(f"{part.path}.") for part in parts]
    if all(any(key.startswith(path) for key in state) for path in paths):
        return ""
    prefixes = {key[: key.index(f".{paths[0]}") + 1] for key in state if f".{paths[0]}" in key}
    for prefix in sorted(prefixes, key=len):
        if all(_has_arrays(prefix + path, options, state) for path, options in zip(paths, layouts, strict=True)):
            return prefix
    return ""


def _has_arrays(start: str, layouts: Sequence[Keys], state: Mapping[str, Any]) -> bool:
    """Whether keys that begin with `start` are followed by the key of an array of a layout."""
    ends = tuple(key for layout in layouts for key in layout.names.values())
    return any(key.startswith(start) and key[len(start) :].endswith(ends) for key in state)


def _state_at(path: str, outer: str, layouts: Sequence[Keys], state: Mapping[str, Any]) -> PartState:
    """Return the arrays of the block at a path: of keys that begin with it, or of the Keras layers that it replaced."""
    path = outer + without_wrappers(f"{path}.")   # as in the keys of `unwrapped`
    if block_state := {key: value for key, value in state.items() if key.startswith(path)}:
        return PartState(block_state, path[:-1], "path")
    for layout in layouts:
        if (prefix := _layer_prefix(path[:-1], layout)) is not None:
            ends = tuple(prefix + key for key in layout.names.values())
            block_state = {key: value for key, value in state.items() if _layer_and_array(key) in ends}
            if block_state:
                return PartState(block_state, prefix.rstrip("_/"), "path")
    return PartState({}, path[:-1], "path")


def _layer_and_array(key: str) -> str:
    """Return the last two names in the path of a Keras variable, those of the layer and of its array."""
    return "/".join(key.split("/")[-2:])


def _in_order(
    parts: Sequence[Part], layouts: Sequence[tuple[Keys, ...]], state: Mapping[str, Any], source: str
) -> list[PartState]:
    """Return the part of a state dict for each block, by the order of the blocks of the same class.

    Raises ValueError unless the state dict has, for each class, as many blocks with the shapes of these parts.
    """
    iterators: dict[type, Iterator[StoredBlock]] = {}
    part_states: list[PartState] = []
    for part, options in zip(parts, layouts, strict=True):
        kind = type(part.spec)
        if kind not in iterators:
            same_kind = [item for item in parts if type(item.spec) is kind]
            iterators[kind] = iter(_blocks_of_kind(same_kind, options, state, source))
        stored = next(iterators[kind])
        block_state = {key: value for key, value in state.items() if key.startswith(stored.prefix)}
        if stored.layout.channels_last:   # other blocks' keys may begin with this prefix too
            block_state = {key: state[key] for key in stored.keys(part.spec).values()}
        is_single = sum(type(item.spec) is kind for item in parts) == 1
        part_states.append(PartState(block_state, stored.prefix.rstrip("._/"), "kind" if is_single else "order"))
    return part_states


def _blocks_of_kind(
    parts: Sequence[Part], layouts: tuple[Keys, ...], state: Mapping[str, Any], source: str
) -> list[StoredBlock]:
    """Return the blocks of `state` that have the shapes of `parts`, in the order of `state`.

    Args:
        parts: the model's parts of one class.
        layouts: the layouts in which `source` may name their weights.
        state: array by key.
        source: name of the library, for the error.

    Raises:
        ValueError: `state` has another number of such blocks than there are parts.

    """
    by_first_key = {
        next(iter(block.keys(part.spec).values())): block
        for part in parts
        for block in stored_blocks(state, part.spec, layouts, same_shapes=True)
    }
    blocks_in_state = [by_first_key[key] for key in state if key in by_first_key]
    if len(blocks_in_state) != len(parts):
        raise _count_error(parts, layouts, source, blocks_in_state, _remedy(parts, state, layouts, source))
    return blocks_in_state


def _remedy(parts: Sequence[Part], state: Mapping[str, Any], layouts: Sequence[Keys], source: str) -> str:
    """Return the arguments of the first part that differ in the same number of blocks in `state`, "" if unknown."""
    spec = parts[0].spec
    blocks = stored_blocks(state, spec, layouts)
    if not blocks and len(parts) == 1:   # arrays are missing
        return remedy_for_layouts(state, spec, layouts, source)
    return remedy(state, blocks[0], spec, source) if len(blocks) == len(parts) else ""


def _count_error(
    parts: Sequence[Part], layouts: Sequence[Keys], source: str, blocks_in_state: Sequence[StoredBlock], fix: str
) -> ValueError:
    """Return the error for a state dict with another number of blocks than a model.

    fix: the remedy; "" for that of blocks that are missing.
    """
    keys = " or ".join(next(iter(layout.names.values())) for layout in layouts)
    paths = [shorten(", ".join(map(repr, names)), 200)
             for names in ([part.path for part in parts], [block.prefix for block in blocks_in_state])]   # fmt: skip
    at_paths = f" after {paths[1]}" if blocks_in_state else ""
    expected = f"{len(parts)} blocks of {source} for those at {paths[0]}, with keys such as {keys} and their shapes"
    fix = fix or "give the arrays of these blocks only, or load each block by load_weights(block, ..., source=...)"
    return ValueError(f"expected {expected}, got {len(blocks_in_state)} of them{at_paths}: {fix}")
