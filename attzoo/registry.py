"""Name -> class. The table is data: reading it imports no framework and no block."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from .extras import missing
from .hints import nearest

if TYPE_CHECKING:
    import keras
    import torch

    from .contract import AnySpec, Example, Source, Spec, Variant

BLOCKS: Final = {  # name -> "package:Class"; an entry point of group GROUP is written the same way
    "se": "attzoo.blocks.se:SE",
    "channel_attention": "attzoo.blocks.channel_attention:ChannelAttention",
    "spatial_attention": "attzoo.blocks.spatial_attention:SpatialAttention",
    "cbam": "attzoo.blocks.cbam:CBAM",
    "eca": "attzoo.blocks.eca:ECA",
    "attention_gate": "attzoo.blocks.attention_gate:AttentionGate",
}
NETWORKS: Final = {   # whole networks of blocks, made and carried like a block, but in no list of blocks
    "unet": "attzoo.unet:UNet",
}
ALIASES: Final = {
    "squeeze_excitation": "se",
    "channel": "channel_attention",
    "spatial": "spatial_attention",
    "additive_gate": "attention_gate",
}
BACKENDS: Final = {"numpy": "spec", "torch": "torch", "keras": "keras"}  # backend -> file in a block's folder
RUNNERS: Final = {"tensorflow": "tensorflow", "tf": "tensorflow", "jax": "jax"}   # what Keras runs on, by its name
GROUP: Final = "attzoo.blocks"


def table() -> dict[str, str]:
    """Every known block as name -> "package:Class": ours, then third-party ones by name.

    Third parties announce theirs as entry points, which are read as strings and not loaded. Raises ValueError
    where one would redefine a name: a built-in one, a network's, an alias, or another third party's.
    """
    return BLOCKS | _third_party(_search_path())


def _search_path() -> tuple[tuple[str, int], ...]:
    """Where packages are looked for, each folder with the time of its last change: a new package changes it."""
    folders = []
    for folder in sys.path:
        with suppress(OSError):
            folders.append((folder, os.stat(folder or ".").st_mtime_ns))
    return tuple(folders)


@lru_cache(maxsize=1)   # reading the entry points of all installed packages takes 5 to 10 ms, and every call needs them
def _third_party(search_path: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """The blocks that installed packages announce, for the packages found on `search_path` as it is now."""
    from importlib.metadata import entry_points  # 60 ms the importer of attzoo need not pay

    found: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        if point.value != (BLOCKS | NETWORKS | ALIASES | found).get(point.name, point.value):
            package = point.dist.name if point.dist else point.value
            raise ValueError(f"block names must be unique, got another {point.name!r}, from the package {package}")
        found[point.name] = point.value
    return dict(sorted(found.items()))


def names() -> list[str]:
    """Every known block, ours and third-party."""
    return list(table())


@overload
def get(name: str, *, backend: Literal["numpy"]) -> type[Spec]: ...
@overload
def get(name: str, *, backend: Literal["torch"]) -> type[torch.nn.Module]: ...
@overload
def get(name: str, *, backend: Literal["keras"]) -> type[keras.layers.Layer]: ...
@overload
def get(name: str, *, backend: str) -> type[Any]: ...
def get(name: str, *, backend: str) -> type[Any]:
    """Block `name`'s class for `backend` ("torch", "keras", or "numpy" for its spec), importing that framework only.

    Raises ValueError for an unknown name or backend, TypeError for one that is no string, ModuleNotFoundError,
    with the install command, where the framework is absent, and ImportError where the block's folder does not hold
    the class; other errors of that import pass through.
    """
    return _load(locate(name), known_name("backend", backend, BACKENDS))


@overload
def create(name: str, /, *args: Any, backend: Literal["numpy"], variant: str | None = None, **kwargs: Any) -> Spec: ...
@overload
def create(
    name: str, /, *args: Any, backend: Literal["torch"], variant: str | None = None, **kwargs: Any
) -> torch.nn.Module: ...
@overload
def create(
    name: str, /, *args: Any, backend: Literal["keras"], variant: str | None = None, **kwargs: Any
) -> keras.layers.Layer: ...
@overload
def create(name: str, /, *args: Any, backend: str, variant: str | None = None, **kwargs: Any) -> Any: ...
def create(name: str, /, *args: Any, backend: str, variant: str | None = None, **kwargs: Any) -> Any:
    """A block, from its arguments (channels first) and, with `variant`, a published choice of the others.

    Explicit arguments override the variant's. Arguments that only `backend`'s class knows (torch's device and dtype,
    Keras's name, dtype and data_format) may stand among them. Raises as `get` and the block's class do; ValueError for
    an unknown variant, TypeError for a device or a torch.dtype with another backend than torch.
    """
    cls = get(name, backend=backend)
    if backend != "torch":
        _refuse_torch_arguments(backend, kwargs)
    if variant is None:
        return cls(*args, **kwargs)
    chosen = variants(name)[known_name(f"variant of {name}", variant, variants(name))]
    spec = get(name, backend="numpy")
    fields = spec.__dataclass_fields__   # type: ignore[attr-defined]
    given = signature(spec).bind_partial(*args, **{k: v for k, v in kwargs.items() if k in fields}).arguments
    follows = {k: each.metadata.get("rule_for", "") for k, each in fields.items()}   # by that argument's rule
    arguments = {k: v for k, v in chosen.arguments.items() if given.get(follows.get(k, "")) is None} | given
    for argument, rule in chosen.rules.items():
        if argument not in given:
            derived = {argument: rule(spec(**arguments))}
            arguments = {k: v for k, v in arguments.items() if follows.get(k) != argument} | derived
    return cls(**(arguments | {k: v for k, v in kwargs.items() if k not in fields}))


def _refuse_torch_arguments(backend: str, kwargs: dict[str, Any]) -> None:
    """Raise TypeError for what only classes of torch take: a device, and a torch.dtype."""
    why = {
        "keras": "Keras's own dtype takes a name or a policy, dtype='float16' say, and keras.device(...) places layers",
        "numpy": "a spec computes in the dtype of its inputs",
    }
    for argument in ("device", "dtype"):
        value = kwargs.get(argument)
        foreign = argument == "device" or backend == "numpy" or type(value).__module__ == "torch"
        if argument in kwargs and foreign:
            raise TypeError(f"expected {argument}={value!r} with backend='torch', got {backend=}: {why[backend]}")


def variants(name: str) -> dict[str, Variant]:
    """The published variants of block `name`, by name; empty for a block that has none."""
    return dict(getattr(optional_module(name, "variants"), "VARIANTS", {}))


def sources(name: str) -> dict[str, Source]:
    """The blocks of other libraries that compute what block `name` does, the reference first; empty where none is."""
    return dict(getattr(optional_module(name, "sources"), "SOURCES", {}))


def optional_module(name: str, file: str) -> ModuleType | None:
    """The module `file` in the folder of block `name`; None for a block that has no such file."""
    module = f"{locate(name).partition(':')[0]}.{file}"
    return import_module(module) if find_spec(module) else None


def examples(name: str) -> dict[str, Example]:
    """Small blocks of name `name`, as its spec's module lists them; the first is named "". None for most networks."""
    return dict(getattr(import_module(get(name, backend="numpy").__module__), "EXAMPLES", {}))


def locate(name: str) -> str:
    """Where block or network `name` lives, as "package:Class"; raises as `get`."""
    known = table() | NETWORKS
    name = known_name("block", name, [*known, *ALIASES])
    return known[ALIASES.get(name, name)]


def name_of(spec: AnySpec) -> str:
    """The name under which a spec's block or network is registered. Raises ValueError when it is not."""
    place = place_of(spec)
    for name, known in (table() | NETWORKS).items():
        if known == place:
            return name
    raise ValueError(f"expected a registered block, got {place}")


def place_of(spec: AnySpec) -> str:
    """Where a spec's block lives, as "package:Class"."""
    return f"{type(spec).__module__.rpartition('.')[0]}:{type(spec).__name__}"


def body(spec: AnySpec, backend: str) -> type[Any]:
    """The class that stands beside a spec's own, for `backend`; registered or not."""
    return _load(place_of(spec), known_name("backend", backend, BACKENDS))


def known_name(what: str, word: Any, known: Iterable[str]) -> str:
    """`word`, which must be one of `known`; else an error that names the nearest."""
    if not isinstance(word, str):
        raise TypeError(f"{what} must be a name, got {word!r}")
    if word in (known := list(known)):
        return word
    hint = nearest(word, known) or "."
    if what == "backend" and (runner := RUNNERS.get(word.lower())):
        hint = f'; Keras runs on it: give backend="keras" and set KERAS_BACKEND={runner} in the environment first.'
    shown = ascii(word if len(word) <= 100 else word[:100] + "...")   # so that a look-alike looks like none
    raise ValueError(f"unknown {what} {shown}{hint} Known: {', '.join(known)}")


@contextmanager
def naming_extra(what: str) -> Iterator[None]:
    """Let the error of a framework that is missing name the extra that brings it; `what` is what needed it."""
    try:
        yield
    except ModuleNotFoundError as err:
        if err.name not in ("torch", "keras", "tensorflow", "jax"):   # a broken install is not a missing one
            raise
        raise ModuleNotFoundError(missing(err.name, err.name, what), name=err.name) from err


def _load(place: str, backend: str) -> type[Any]:
    package, _, cls = place.partition(":")
    with naming_extra(f'backend="{backend}"'):
        module = import_module(f"{package}.{BACKENDS[backend]}")
    found = getattr(module, cls, None)
    if not isinstance(found, type):
        raise ImportError(f"expected class {cls} in {module.__name__}, got {found!r}")
    return found
