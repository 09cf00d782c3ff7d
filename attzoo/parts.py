"""Find the blocks and networks in a model, read and write their arrays, and match them with the blocks in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import registry
from .adapters import NO_BLOCKS, adapter, backend_of, framework_of, has_spec
from .contract import AnySpec, Array, Weight, contiguous, shorten
from .tables import text_table

GAMMA = Weight((1,), "constant")   # the further weight of a block attached with start="identity"
BLOCKS_FIX = "create the same blocks with the same arguments first"


@dataclass(frozen=True)
class Part:
    """A block or network of attzoo in a model or a file.

    Args:
        path: path in the model; "" if the part is the model itself.
        spec: spec of the block or network.
        start: as in `attach`; "identity" means that the part has the weight "gamma" besides the weights of its block.
        holder: the block, or the layer that `attach` created around it; None for a part of a file.

    """

    path: str
    spec: AnySpec
    start: str = "default"
    holder: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_start(self.path, self.spec, self.start)

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the description of every array by its name in the whole model or file."""
        weights = self.spec.weights | ({"gamma": GAMMA} if self.start == "identity" else {})
        return {self.key(name): weight for name, weight in weights.items()}

    def key(self, name: str) -> str:
        """Return the name in the whole model or file of the array that the block calls `name`."""
        return f"{self.path}.{name}" if self.path else name

    def is_like(self, other: Part) -> bool:
        """Whether two parts compute the same function of their inputs and weights; their paths may differ."""
        return self.spec == other.spec and self.start == other.start

    @property
    def block(self) -> Any:
        """Return the block or network, without the layer around it."""
        return self.holder if has_spec(self.holder) else self.holder.block

    @property
    def _framework(self) -> Any:
        """Return the adapter module of the framework of the block."""
        return adapter(backend_of(self.block))

    def read(self) -> dict[str, Array]:
        """Return copies of the arrays by their names in the whole model."""
        arrays: dict[str, Array] = self._framework.read(self.block)
        if self.start == "identity":
            arrays = arrays | {"gamma": self._framework.gamma(self.holder)[0]}
        return {self.key(name): array for name, array in arrays.items()}

    def dtypes(self) -> dict[str, str]:
        """Return the name of each array's dtype by the array's name in the whole model."""
        dtypes: dict[str, str] = self._framework.dtypes(self.block)
        if self.start == "identity":
            dtypes = dtypes | {"gamma": self._framework.gamma(self.holder)[1]}
        return {self.key(name): dtype for name, dtype in dtypes.items()}

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Write arrays by their names in the whole model. They must have passed `portable.checked_arrays`."""
        block_arrays = {name: arrays[self.key(name)] for name in self.spec.weights}
        self._framework.write(self.block, block_arrays)
        if self.start == "identity":
            self._framework.set_gamma(self.holder, arrays[self.key("gamma")])

    def check_layers(self) -> None:
        """Raise ValueError if layers of the block were replaced or changed after its creation."""
        backend = backend_of(self.block)
        self._framework.check_layers(self.block, registry.class_of(self.spec, backend))

    def __str__(self) -> str:
        """Return the class and the arguments of the block, shortened, for an error."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.spec.config().items())
        start_text = f" with start={self.start!r}" if self.start != "default" else ""
        return f"{type(self.spec).__name__}({shorten(arguments, 160)}){start_text}"


def check_start(path: str, spec: AnySpec, start: str) -> None:
    """Raise ValueError if a block has an array named as the factor of start="identity"."""
    if start == "identity" and "gamma" in spec.weights:
        got, fix = f"one of {type(spec).__name__} at {path!r}", "rename it, or use start='default'"
        raise ValueError(f"expected no array gamma in a block with start='identity', got {got}: {fix}")


def parts_of(model: Any) -> list[Part]:
    """Return the outermost blocks and networks of a model in its order; for a block or network, only itself.

    Raises:
        TypeError: `model` is not a block or network, and contains none.

    """
    backend = framework_of(model)
    holders = {} if backend is None else adapter(backend).parts(model)
    if not holders:
        expected = "expected an attzoo block of torch or Keras, or a model that contains some"
        raise TypeError(f"{expected}, got {type(model).__name__}{NO_BLOCKS if backend else ''}")
    return [_part(path, holder) for path, holder in holders.items()]


def _part(path: str, holder: Any) -> Part:
    """Return the part at `path` for `holder`: a block, or the layer that `attach` created around a block."""
    if has_spec(holder):
        return Part(path, holder.spec, "default", holder)
    return Part(path, holder.block.spec, "identity" if hasattr(holder, "gamma") else "default", holder)


def is_single(parts: Sequence[Part]) -> bool:
    """Whether the parts of a model are only the model itself, which is a block or network then."""
    return len(parts) == 1 and parts[0].path == "" and parts[0].start == "default"


def read_all(parts: Sequence[Part]) -> dict[str, Array]:
    """Return copies of the arrays of parts by their names in the whole model."""
    return {name: array for part in parts for name, array in part.read().items()}


def write_all(parts: Sequence[Part], arrays: Mapping[str, Array]) -> None:
    """Write checked arrays, given by their names in the whole model, to parts. After an error no array has changed.

    Raises:
        ValueError: a part refuses an array, or an array does not hold the numbers written to it.

    """
    arrays_before = read_all(parts)
    written: list[Part] = []
    try:
        for part in parts:
            written.append(part)
            part.write(arrays)
        for name, array in read_all(parts).items():
            if not np.array_equal(array, arrays[name].astype(array.dtype)):
                fix = "it shares memory with another array, so give each its own"
                raise ValueError(f"expected {name} to hold the array written to it, got other numbers: {fix}")
    except BaseException:
        for part in written:
            with suppress(ValueError):   # the part that refused the arrays refuses these too, and has not changed
                part.write(arrays_before)
        raise


# ---- matching blocks ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A block of a model and the block from which its weights were read.

    Args:
        path: path of the block in the model; "" if it is the model itself.
        block: name of the block in the registry.
        source: path of the block in the file or model from which the weights were read.
        by: "path" if all blocks have the same paths in both; else "kind" if only one block has these arguments, or
            "order" if several have, which are in the same order in both.

    """

    path: str
    block: str
    source: str
    by: str


@dataclass(frozen=True)
class Loaded:
    """The blocks whose weights were written, and the source of each. `print` shows them as a table."""

    matches: tuple[Match, ...]

    def __iter__(self) -> Iterator[Match]:
        """Yield the matches, one per block."""
        return iter(self.matches)

    def __len__(self) -> int:
        """Return the number of matches."""
        return len(self.matches)

    def __str__(self) -> str:
        """Return a table with a row for each match."""
        rows = [(match.path or None, match.block, match.source or None, match.by) for match in self.matches]
        return text_table([("path", "block", "from", "matched by"), *rows])


def match_parts(parts: Sequence[Part], sources: Sequence[Part]) -> list[tuple[Part, Part, str]]:
    """Return each part of a model, its source, and the criterion that matched them, as in `Match.by`.

    sources: the parts of the file or model from which weights are read.

    Raises:
        ValueError: parts and sources are not the same blocks, or can be matched in several ways.

    """
    by_path = {source.path: source for source in sources}
    if {part.path for part in parts} == by_path.keys():
        for part in parts:
            if not part.is_like(by_path[part.path]):
                at_path = f" at {part.path!r}" if part.path else ""
                got = f"weights of {by_path[part.path]}: {BLOCKS_FIX}"
                raise ValueError(f"expected weights of {part}{at_path}, got {got}")
        return [(part, by_path[part.path], "path") for part in parts]
    matches = []
    for part in parts:
        similar_parts = [candidate for candidate in parts if candidate.is_like(part)]
        candidates = [source for source in sources if source.is_like(part)]
        if len(similar_parts) != len(candidates):
            raise _count_error(part, parts, sources, len(similar_parts), len(candidates))
        by = "kind" if len(similar_parts) == 1 else "order"
        matches.append((part, candidates[similar_parts.index(part)], by))
    if surplus := [source for source in sources if not any(source.is_like(part) for part in parts)]:
        raise _count_error(surplus[0], parts, sources, 0, 1)
    _check_order(matches, sources)
    return matches


def _count_error(part: Part, parts: Sequence[Part], sources: Sequence[Part], expected: int, got: int) -> ValueError:
    """Return the error that the sources have `got` blocks like `part`, and the model has `expected` of them."""
    paths = [shorten(", ".join(repr(item.path) for item in group), 200) for group in (parts, sources)]
    return ValueError(
        f"expected weights of the model's blocks, {expected} of {part}, got {got} of them: the model has blocks at "
        f"{paths[0]}, and the weights belong to blocks at {paths[1]}; {BLOCKS_FIX}"
    )


def _check_order(matches: Sequence[tuple[Part, Part, str]], sources: Sequence[Part]) -> None:
    """Raise ValueError if matches by order are doubtful: paths contradict them, or the two orders of blocks differ.

    matches: the result of `match_parts`.
    """
    paths = {source.path for source in sources}
    fix = "give the layers the same names, or pass the weights of each block to load_weights(block, ...)"
    for part, source, _ in matches:
        if part.path in paths and part.path != source.path:
            got = f"{part.path!r} in both, where the order of the blocks would match it with {source.path!r}"
            raise ValueError(f"expected all or none of the blocks to have the same paths, got {got}: {fix}")
    same_order = all(part.is_like(source) for (part, *_), source in zip(matches, sources, strict=True))
    if not same_order and any(by == "order" for *_, by in matches):
        orders = [shorten(", ".join(type(part.spec).__name__ for part in group), 200)
                  for group in ([part for part, *_ in matches], sources)]   # fmt: skip
        raise ValueError(f"expected the blocks in the order of the model, {orders[0]}, got {orders[1]}: {fix}")


def rename_arrays(matches: Sequence[tuple[Part, Part, str]], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays of the sources under the names of the parts that they are matched with.

    matches: the result of `match_parts`. arrays: array by its name in the sources.
    """
    return {
        name: contiguous(arrays[source_name])
        for part, source, _ in matches   # matched parts have equal specs, and so the same arrays in the same order
        for name, source_name in zip(part.weights, source.weights, strict=True)
    }


def loaded_report(matches: Sequence[tuple[Part, Part, str]]) -> Loaded:
    """Return the report of `load_weights` for the result of `match_parts`."""
    return Loaded(tuple(Match(part.path, _name_of(part.spec), source.path, by) for part, source, by in matches))


def _name_of(spec: AnySpec) -> str:
    """Return the registered name of a block, or the name of its class if it is not registered."""
    try:
        return registry.name_of(spec)
    except ValueError:
        return type(spec).__name__
