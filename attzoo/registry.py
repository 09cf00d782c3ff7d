"""Registry of blocks and networks by name. It holds strings: reading it imports no framework and no block."""

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

    from .contract import AnySpec, Example, Source, Spec, Unsupported, Variant

BLOCKS: Final = {  # name -> "package:Class"; entry points of ENTRY_POINT_GROUP have the same form
    "se": "attzoo.blocks.se:SE",
    "channel_attention": "attzoo.blocks.channel_attention:ChannelAttention",
    "spatial_attention": "attzoo.blocks.spatial_attention:SpatialAttention",
    "cbam": "attzoo.blocks.cbam:CBAM",
    "eca": "attzoo.blocks.eca:ECA",
    "ese": "attzoo.blocks.ese:ESE",
    "gc": "attzoo.blocks.gc:GC",
    "bam": "attzoo.blocks.bam:BAM",
    "lka": "attzoo.blocks.lka:LKA",
    "sk": "attzoo.blocks.sk:SK",
    "coord_attention": "attzoo.blocks.coord_attention:CoordAttention",
    "shuffle_attention": "attzoo.blocks.shuffle_attention:ShuffleAttention",
    "ema_attention": "attzoo.blocks.ema_attention:EMAAttention",
    "gct": "attzoo.blocks.gct:GCT",
    "attention_gate": "attzoo.blocks.attention_gate:AttentionGate",
    "scse": "attzoo.blocks.scse:SCSE",
    "simam": "attzoo.blocks.simam:SimAM",
    "triplet_attention": "attzoo.blocks.triplet_attention:TripletAttention",
    "mlca": "attzoo.blocks.mlca:MLCA",
    "ge": "attzoo.blocks.ge:GE",
}
NETWORKS: Final = {   # created, saved and converted like blocks, but not listed by `names`
    "unet": "attzoo.unet:UNet",
}
ALIASES: Final = {
    "squeeze_excitation": "se",
    "effective_se": "ese",
    "global_context": "gc",
    "gather_excite": "ge",
    "channel": "channel_attention",
    "spatial": "spatial_attention",
    "additive_gate": "attention_gate",
}
BACKENDS: Final = {"numpy": "spec", "torch": "torch", "keras": "keras"}  # backend -> module in the package of a block
KERAS_BACKENDS: Final = {"tensorflow": "tensorflow", "tf": "tensorflow", "jax": "jax"}   # values of KERAS_BACKEND
ENTRY_POINT_GROUP: Final = "attzoo.blocks"


def table() -> dict[str, str]:
    """Return all blocks as name -> "package:Class": built-in blocks, then third-party blocks sorted by name.

    Third-party packages declare blocks as entry points, which are read as strings and not loaded. Raise ValueError if
    an entry point has the name of another block, a network or an alias.
    """
    return BLOCKS | _third_party_blocks(_search_path())


def _search_path() -> tuple[tuple[str, int], ...]:
    """Return the folders of sys.path with their modification times, which change when a package is installed."""
    folders = []
    for folder in sys.path:
        with suppress(OSError):
            folders.append((folder, os.stat(folder or ".").st_mtime_ns))
    return tuple(folders)


@lru_cache(maxsize=1)   # reading the entry points of all packages takes 5 to 10 ms, and every call needs them
def _third_party_blocks(search_path: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """Return name -> "package:Class" of the blocks that installed packages declare as entry points, sorted by name.

    search_path: the result of `_search_path`, a key of the cache.
    """
    from importlib.metadata import entry_points  # takes 60 ms, so not at import of attzoo

    blocks: dict[str, str] = {}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.value != (BLOCKS | NETWORKS | ALIASES | blocks).get(entry_point.name, entry_point.value):
            package = entry_point.dist.name if entry_point.dist else entry_point.value
            got = f"a second {entry_point.name!r} from package {package}"
            raise ValueError(f"block names must be unique, got {got}: uninstall it")
        blocks[entry_point.name] = entry_point.value
    return dict(sorted(blocks.items()))


def names() -> list[str]:
    """Return the names of all blocks: built-in, then third-party."""
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
    """Return the class of a block or network. Only the framework of `backend` is imported.

    Args:
        name: name or alias.
        backend: "torch", "keras", or "numpy" for the spec.

    Raises:
        ValueError: the name or backend is unknown.
        TypeError: the name or backend is not a string.
        ModuleNotFoundError: the framework is not installed. The message has the install command.
        ImportError: the block's module does not define the class. Other errors of its import are not changed.

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
    """Return a block or network.

    Args:
        name: name or alias.
        *args: arguments of the block; the first is its number of channels.
        backend: "torch", "keras", or "numpy" for the spec.
        variant: a published choice of arguments. Arguments that are given override it.
        **kwargs: further arguments of the block, and arguments of the backend's class (device and dtype in torch; name,
            dtype and data_format in Keras).

    Raises:
        ValueError: the variant is unknown.
        TypeError: device or a torch.dtype is given with another backend than torch.
        Exception: any error of `get` and of the block's class.

    """
    cls = get(name, backend=backend)
    if backend != "torch":
        _refuse_torch_arguments(backend, kwargs)
    if variant is None:
        return cls(*args, **kwargs)
    preset = variants(name)[known_name(f"variant of {name}", variant, variants(name))]
    spec = get(name, backend="numpy")
    fields = spec.__dataclass_fields__   # type: ignore[attr-defined]
    explicit_arguments = (
        signature(spec).bind_partial(*args, **{key: value for key, value in kwargs.items() if key in fields}).arguments
    )
    # rule -> argument that it derives; "" for other arguments
    derives = {k: field.metadata.get("rule_for", "") for k, field in fields.items()}
    arguments = {
        key: value for key, value in preset.arguments.items() if explicit_arguments.get(derives.get(key, "")) is None
    } | explicit_arguments
    for argument, rule in preset.rules.items():
        if argument not in explicit_arguments:
            derived = {argument: rule(spec(**arguments))}
            arguments = {key: value for key, value in arguments.items() if derives.get(key) != argument} | derived
    return cls(**(arguments | {key: value for key, value in kwargs.items() if key not in fields}))


def _refuse_torch_arguments(backend: str, kwargs: dict[str, Any]) -> None:
    """Raise TypeError if `kwargs` has a device or torch dtype, or with backend "numpy" any dtype."""
    reasons = {
        "keras": "Keras takes dtype as a name or policy, such as 'float16', and the device by keras.device(...)",
        "numpy": "a spec computes in NumPy, on the CPU and in the dtype of its inputs",
    }
    for argument in ("device", "dtype"):
        value = kwargs.get(argument)
        is_refused = argument == "device" or backend == "numpy" or type(value).__module__ == "torch"
        if argument in kwargs and is_refused:
            raise TypeError(f"expected {argument}={value!r} with backend='torch', got {backend=}: {reasons[backend]}")


def variants(name: str) -> dict[str, Variant]:
    """Return the published variants of a block or network by name."""
    return dict(getattr(optional_module(name, "variants"), "VARIANTS", {}))


def sources(name: str) -> dict[str, Source]:
    """Return the equivalent blocks of other libraries by name. The first is the reference."""
    return dict(getattr(optional_module(name, "sources"), "SOURCES", {}))


def keys(name: str) -> dict[str, Any]:
    """Return, by source, the layouts of other libraries' state dicts that a block or network reads: a tuple of Keys.

    `export_weights` writes the first layout of a source. For a network, whose keys depend on its arguments, a function
    of its spec returns the tuple.
    """
    return dict(getattr(optional_module(name, "sources"), "KEYS", {}))


def unsupported(name: str) -> tuple[Unsupported, ...]:
    """Return the modules of other libraries whose weights a block or network cannot represent."""
    return tuple(getattr(optional_module(name, "sources"), "UNSUPPORTED", ()))


def optional_module(name: str, file: str) -> ModuleType | None:
    """Import and return module `file` in the package of block `name`; return None if there is no such module."""
    module = f"{locate(name).partition(':')[0]}.{file}"
    return import_module(module) if find_spec(module) else None


def examples(name: str) -> dict[str, Example]:
    """Return small instances of a block by name, from the module of its spec. The first has the name ""."""
    return dict(getattr(import_module(get(name, backend="numpy").__module__), "EXAMPLES", {}))


def locate(name: str) -> str:
    """Return the location "package:Class" of a block or network. Raise the errors of `get` for an unknown name."""
    all_names = table() | NETWORKS
    name = known_name("block", name, [*all_names, *ALIASES])
    return all_names[ALIASES.get(name, name)]


def name_of(spec: AnySpec) -> str:
    """Return the registered name of a spec's block or network. Raise ValueError if it is not registered."""
    location = location_of(spec)
    for name, registered in (table() | NETWORKS).items():
        if registered == location:
            return name
    raise ValueError(f"expected a registered block, got {location}: add an entry point to group {ENTRY_POINT_GROUP}")


def location_of(spec: AnySpec) -> str:
    """Return the location "package:Class" of a spec's block, which need not be registered."""
    return f"{type(spec).__module__.rpartition('.')[0]}:{type(spec).__name__}"


def class_of(spec: AnySpec, backend: str) -> type[Any]:
    """Return the class of a spec's block for `backend`. The block need not be registered. Raise the errors of `get`."""
    return _load(location_of(spec), known_name("backend", backend, BACKENDS))


def known_name(kind: str, word: Any, names: Iterable[str]) -> str:
    """Return `word` if it is one of `names`.

    Args:
        kind: what `word` names, such as "block", for errors.
        word: the name to check.
        names: accepted names.

    Raises:
        TypeError: `word` is not a string.
        ValueError: `word` is unknown. The message proposes the nearest name.

    """
    if not isinstance(word, str):
        raise TypeError(f"{kind} must be a name, got {word!r}")
    if word in (names := list(names)):
        return word
    hint = nearest(word, names) or "."
    if kind == "backend" and (keras_backend := KERAS_BACKENDS.get(word.lower())):
        environment = f"KERAS_BACKEND={keras_backend}"
        hint = f'; it is a backend of Keras: give backend="keras" and set {environment} in the environment first.'
    word_text = ascii(word if len(word) <= 100 else word[:100] + "...")   # in ASCII, so that look-alike letters differ
    raise ValueError(f"unknown {kind} {word_text}{hint} Known: {', '.join(names)}")


@contextmanager
def name_missing_extra(needed_by: str) -> Iterator[None]:
    """Add the install command to the ModuleNotFoundError of a framework that `needed_by`, such as a function, needs."""
    try:
        yield
    except ModuleNotFoundError as err:
        if err.name not in ("torch", "keras", "tensorflow", "jax"):   # a broken installation
            raise
        raise ModuleNotFoundError(missing(err.name, err.name, needed_by), name=err.name) from err


def _load(location: str, backend: str) -> type[Any]:
    """Import and return the class at a location "package:Class" for `backend`. Raise the import errors of `get`."""
    package, _, class_name = location.partition(":")
    with name_missing_extra(f'backend="{backend}"'):
        module = import_module(f"{package}.{BACKENDS[backend]}")
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        raise ImportError(f"expected class {class_name} in {module.__name__}, got {cls!r}: define it there")
    return cls
