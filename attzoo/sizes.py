"""Find the arguments with which a block has arrays of given shapes, for errors that name the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

from . import registry
from .contract import AnySpec

MAX_CHANGES: Final = 6   # largest number of arguments, or of items of them, that are changed
Shapes = Mapping[str, tuple[int, ...]]


def changes_for(shapes: Shapes, spec: AnySpec, source: str = "") -> dict[str, Any]:
    """Return the arguments to change, with their values, so that a spec's weights have these names and shapes.

    Different arguments may give the same shapes, so those with which the source's block has these shapes are tried
    first. Then one argument after the other is changed to the value that leaves the smallest difference between the
    spec's shapes and these; if several changes leave the same difference, the number of channels is the last choice.
    Axes of size 1 are ignored, because libraries differ in them. Returns {} if no arguments are found.

    Args:
        shapes: shapes by canonical name.
        spec: the spec whose arguments are changed.
        source: name of the library that the shapes are from.

    >>> from attzoo.blocks.se.spec import SE
    >>> changes_for({"squeeze.weight": (24, 64, 1, 1), "excite.weight": (64, 24, 1, 1)}, SE(64, bias=False))
    {'reduced_channels': 24}
    """
    config, changed, difference = spec.config(), spec, _difference(shapes, spec)
    same_shapes = [item for item in _of_source(spec, shapes, source) if not _difference(shapes, item)]
    if same_shapes:
        return min((_changes(config, item) for item in same_shapes), key=len)
    for _ in range(MAX_CHANGES):
        changed = min(_candidates(changed, shapes), key=lambda item: _difference(shapes, item), default=changed)
        if (smaller := _difference(shapes, changed)) >= difference:
            return {}
        if not (difference := smaller):
            return _changes(config, changed)
    return {}


def change_text(shapes: Shapes, spec: AnySpec, source: str) -> str:
    """Return the result of `changes_for` as the remedy of an error, or "" if there is none."""
    if not (changes := changes_for(shapes, spec, source)):
        return ""
    config = spec.config()
    changes_text = " and ".join(f"{name}={value!r} instead of {config[name]!r}" for name, value in changes.items())
    return f"create the block with {changes_text}, which gives it these arrays"


def _changes(config: Mapping[str, Any], changed: AnySpec) -> dict[str, Any]:
    """Return the arguments of a changed spec that differ from those of `config`."""
    return {name: value for name, value in changed.config().items() if value != config[name]}


def _of_source(spec: AnySpec, shapes: Shapes, source: str) -> Iterator[AnySpec]:
    """Yield the specs with the arguments of a library's blocks that these shapes determine, for each of its choices."""
    cls: Any = type(spec)
    try:
        sources = registry.sources(registry.name_of(spec))
    except ValueError:   # the block is not registered
        return
    for block in sources.values():
        for choice in block.choices if block.package == source else ():
            with suppress(KeyError, TypeError, ValueError):   # arrays are missing, or the block refuses the values
                yield cls(**spec.config() | dict(block.read(shapes)) | dict(choice))


def _difference(shapes: Shapes, spec: AnySpec) -> int:
    """Return the number of sizes in which a spec's weights differ from these shapes. A missing array counts more."""
    expected = {name: _without_ones(weight.shape) for name, weight in spec.weights.items()}
    stored = {name: _without_ones(shape) for name, shape in shapes.items()}
    other_names = expected.keys() ^ stored.keys()
    difference = sum(2 + len(expected.get(name, stored.get(name, ()))) for name in other_names)
    for name in expected.keys() & stored.keys():
        pair = expected[name], stored[name]
        is_same_rank = len(pair[0]) == len(pair[1])
        difference += sum(a != b for a, b in zip(*pair, strict=True)) if is_same_rank else 1 + max(map(len, pair))
    return difference


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its axes of size 1."""
    return tuple(size for size in shape if size != 1)


def _candidates(spec: AnySpec, shapes: Shapes) -> Iterator[AnySpec]:
    """Yield specs that differ from `spec` in one argument, or in one item of an argument that is a sequence.

    The other values of integers are the sizes in `shapes`, and the numbers of groups that would give these sizes.
    Specs with another number of channels come last.
    """
    cls: Any = type(spec)
    config = spec.config()
    sizes = {size for shape in shapes.values() for size in shape if size}
    parts = {channels // (n * size) for channels in spec.inputs for size in sizes for n in (1, 2)}   # numbers of groups
    choices = getattr(import_module(cls.__module__), "CHOICES", {})
    for name, value in sorted(config.items(), key=lambda item: item[0] == "channels"):   # last, as the network fixes it
        for other_value in (*_changed(value, sorted(sizes | parts - {0})), *choices.get(name, ())):
            try:
                yield cls(**config | {name: other_value})
            except (TypeError, ValueError):   # the block does not accept this value
                continue


def _changed(value: Any, numbers: list[int]) -> Iterator[Any]:
    """Yield other values of an argument: True or False, or for an integer or a sequence of integers these numbers."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from numbers
    elif isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
        for i in range(len(value)):
            yield from ([*value[:i], number, *value[i + 1 :]] for number in numbers)
