"""The blocks and networks in a model or a file: what each is, and which of one belongs to which of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import registry
from .adapters import NO_BLOCKS, adapter, backend_of, framework_of
from .contract import AnySpec, Array, Weight, contiguous, shorten
from .tables import text_table

GAMMA = Weight((1,), "constant")   # of a block that `attach` put in with start="identity"


@dataclass(frozen=True)
class Part:
    """A block or network of attzoo in a model or a file.

    Args:
        path: in the model; "" if it is the model itself.
        spec: of the block or network.
        start: as in `attach`; "identity" means that the part has the weight "gamma" besides those of its block.
        holder: the block, or the layer around it that `attach` made; None in a file.

    """

    path: str
    spec: AnySpec
    start: str = "default"
    holder: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.start == "identity" and "gamma" in self.spec.weights:
            got, fix = f"one of {type(self.spec).__name__} at {self.path!r}", "rename it, or use start='default'"
            raise ValueError(f"expected no array gamma in a block with start='identity', got {got}: {fix}")

    @property
    def weights(self) -> dict[str, Weight]:
        """Description of every array, by its name in the whole model or file."""
        own = self.spec.weights | ({"gamma": GAMMA} if self.start == "identity" else {})
        return {self.key(name): weight for name, weight in own.items()}

    def key(self, name: str) -> str:
        """Return the name of an array in the whole model or file."""
        return f"{self.path}.{name}" if self.path else name

    def is_like(self, other: Part) -> bool:
        """Whether two parts compute the same function of their inputs and weights."""
        return self.spec == other.spec and self.start == other.start

    @property
    def block(self) -> Any:
        """The block or network."""
        return self.holder if hasattr(self.holder, "spec") else self.holder.block

    @property
    def _framework(self) -> Any:
        return adapter(backend_of(self.block))

    def read(self) -> dict[str, Array]:
        """Return copies of the arrays, by their names in the whole model."""
        arrays: dict[str, Array] = self._framework.read(self.block)
        if self.start == "identity":
            arrays = arrays | {"gamma": self._framework.gamma(self.holder)[0]}
        return {self.key(name): array for name, array in arrays.items()}

    def dtypes(self) -> dict[str, str]:
        """Return the dtype of each array, by its name in the whole model."""
        dtypes: dict[str, str] = self._framework.dtypes(self.block)
        if self.start == "identity":
            dtypes = dtypes | {"gamma": self._framework.gamma(self.holder)[1]}
        return {self.key(name): dtype for name, dtype in dtypes.items()}

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Write checked arrays, by their names in the whole model."""
        own = {name: arrays[self.key(name)] for name in self.spec.weights}
        self._framework.write(self.block, own)
        if self.start == "identity":
            self._framework.set_gamma(self.holder, arrays[self.key("gamma")])

    def check_layers(self) -> None:
        """Raise ValueError if layers of the block were replaced or changed after its creation."""
        backend = backend_of(self.block)
        self._framework.check_layers(self.block, registry.class_of(self.spec, backend))

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.spec.config().items())
        start = f" with start={self.start!r}" if self.start != "default" else ""
        return f"{type(self.spec).__name__}({shorten(arguments, 160)}){start}"


def parts_of(model: Any) -> list[Part]:
    """Return the outermost blocks and networks of a model in its order; of a block or network only itself.

    Raises:
        TypeError: `model` is no block, and holds none.

    """
    backend = framework_of(model)
    holders = {} if backend is None else adapter(backend).parts(model)
    if not holders:
        expected = "expected an attzoo block of torch or Keras, or a model that holds some"
        raise TypeError(f"{expected}, got {type(model).__name__}{NO_BLOCKS if backend else ''}")
    return [_part(path, holder) for path, holder in holders.items()]


def _part(path: str, holder: Any) -> Part:
    """Return the part of a block, or of the layer that `attach` made around one."""
    if hasattr(holder, "spec"):
        return Part(path, holder.spec, "default", holder)
    return Part(path, holder.block.spec, "identity" if hasattr(holder, "gamma") else "default", holder)


def is_single(parts: Sequence[Part]) -> bool:
    """Whether a model is a block or network itself."""
    return len(parts) == 1 and parts[0].path == "" and parts[0].start == "default"


def read_all(parts: Sequence[Part]) -> dict[str, Array]:
    """Return copies of the arrays of parts, by their names in the whole model."""
    return {name: array for part in parts for name, array in part.read().items()}


def write_all(parts: Sequence[Part], arrays: Mapping[str, Array]) -> None:
    """Write checked arrays to parts, by their names in the whole model. On an error no array changes."""
    before = read_all(parts)
    written: list[Part] = []
    try:
        for part in parts:
            written.append(part)
            part.write(arrays)
        for name, array in read_all(parts).items():
            if not np.array_equal(array, arrays[name].astype(array.dtype)):
                fix = "another array shares its memory, separate them first"
                raise ValueError(f"expected {name} to hold the array written to it, got other numbers: {fix}")
    except BaseException:
        for part in written:
            with suppress(ValueError):   # the part that refused the arrays refuses these too, and has not changed
                part.write(before)
        raise


# ---- which belongs to which --------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A block of a model and where its weights came from.

    Args:
        path: of the block in the model; "" if it is the model.
        block: its name in the registry.
        source: path of the block in the file or model from which the weights were read.
        by: "path" where the paths of all blocks are the same, else "kind" where there is only one block of these
            arguments, or "order" where there are several, which stand in the same order in both.

    """

    path: str
    block: str
    source: str
    by: str


@dataclass(frozen=True)
class Loaded:
    """Which weights were written to which block. `print` shows them as a table."""

    matches: tuple[Match, ...]

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)

    def __len__(self) -> int:
        return len(self.matches)

    def __str__(self) -> str:
        rows = [(m.path or None, m.block, m.source or None, m.by) for m in self.matches]
        return text_table([("path", "block", "from", "matched by"), *rows])


def matched(parts: Sequence[Part], sources: Sequence[Part]) -> list[tuple[Part, Part, str]]:
    """Return the parts of a model, each with its source and how they were matched, as `Match.by`.

    Raises:
        ValueError: parts and sources are not the same blocks, or it is not clear which belongs to which.

    """
    by_path = {source.path: source for source in sources}
    if {part.path for part in parts} == by_path.keys():
        for part in parts:
            if not part.is_like(by_path[part.path]):
                place = f" at {part.path!r}" if part.path else ""
                raise ValueError(f"expected weights of {part}{place}, got those of {by_path[part.path]}")
        return [(part, by_path[part.path], "path") for part in parts]
    pairs = []
    for part in parts:
        alike = [each for each in parts if each.is_like(part)]
        candidates = [source for source in sources if source.is_like(part)]
        if len(alike) != len(candidates):
            raise _not_the_same(part, parts, sources, len(alike), len(candidates))
        pairs.append((part, candidates[alike.index(part)], "kind" if len(alike) == 1 else "order"))
    if surplus := [source for source in sources if not any(source.is_like(part) for part in parts)]:
        raise _not_the_same(surplus[0], parts, sources, 0, 1)
    _check_order(pairs, sources)
    return pairs


def _not_the_same(part: Part, parts: Sequence[Part], sources: Sequence[Part], expected: int, got: int) -> ValueError:
    """Return the error for another number of blocks of one kind in a model and in what it is to load."""
    paths = [shorten(", ".join(repr(each.path) for each in some), 200) for some in (parts, sources)]
    return ValueError(
        f"expected weights of the model's blocks, {expected} of {part}, got {got} of them: the model has blocks at "
        f"{paths[0]}, and the weights are those of blocks at {paths[1]}"
    )


def _check_order(pairs: Sequence[tuple[Part, Part, str]], sources: Sequence[Part]) -> None:
    """Raise ValueError where the order of the blocks does not say which belongs to which."""
    paths = {source.path for source in sources}
    fix = "give the layers the same names, or pass the weights of each block to load_weights(block, ...)"
    for part, source, _ in pairs:
        if part.path in paths and part.path != source.path:
            got = f"{part.path!r} in both, which the order of the blocks matches with {source.path!r}"
            raise ValueError(f"expected all or none of the blocks to have the same paths, got {got}: {fix}")
    has_order = all(a.is_like(b) for (a, _, _), b in zip(pairs, sources, strict=True))
    if not has_order and any(by == "order" for *_, by in pairs):
        orders = [shorten(", ".join(type(part.spec).__name__ for part in some), 200)
                  for some in ([part for part, *_ in pairs], sources)]   # fmt: skip
        raise ValueError(f"expected the blocks in one order, the model's {orders[0]}, got {orders[1]}: {fix}")


def renamed(pairs: Sequence[tuple[Part, Part, str]], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays of the sources by their names in the model of the parts."""
    names = {
        part.key(name): source.key(name)
        for part, source, _ in pairs
        for name in ("gamma", *part.spec.weights)
        if part.key(name) in part.weights
    }
    return {ours: contiguous(arrays[theirs]) for ours, theirs in names.items()}


def loaded(pairs: Sequence[tuple[Part, Part, str]]) -> Loaded:
    """Return the report on weights that were written."""
    return Loaded(tuple(Match(part.path, _name_of(part.spec), source.path, by) for part, source, by in pairs))


def _name_of(spec: AnySpec) -> str:
    """Return the registered name of a block, or that of its class: a third party's block need not be registered."""
    try:
        return registry.name_of(spec)
    except ValueError:
        return type(spec).__name__
