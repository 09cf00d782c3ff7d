"""Weights that travel: as arrays with canonical names, into a twin in the other framework, and as one file for both.

A file is safetensors: the arrays, and in its metadata, as JSON under the key "attzoo", the format's version, the
block's name, its resolved arguments and a checksum of all that. Equal blocks give equal files, whatever their backend.
Nothing in a file can run, and it is refused before anything is allocated unless every name, shape, dtype and size in it
is what that block has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse

from . import registry
from .adapters import adapter, backend_of
from .archive import KEY, pack, verify
from .contract import AnySpec, Array, brief, upgraded
from .files import open_regular, write
from .hints import nearest

FORMAT: Final = 1
DTYPES: Final = {"F16": "float16", "F32": "float32", "F64": "float64"}   # safetensors' name -> NumPy's
OTHER_FORMATS: Final = (   # endings
    ".bin", ".ckpt", ".h5", ".hdf5", ".joblib", ".json", ".keras", ".msgpack", ".npy", ".npz", ".onnx", ".pb",
    ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".tar", ".tflite", ".zip",
)   # fmt: skip
OTHER_STARTS: Final = {   # how files of other formats begin
    b"PK\x03\x04": "a zip archive, as torch.save, numpy.savez and Keras write",
    b"\x89HDF\r\n\x1a\n": "HDF5, as Keras writes",
    b"\x93NUMPY": "a .npy file of NumPy",
}
OWN_START: Final = f'{{"__metadata__":{{"{KEY}":'.encode()   # of a file's header, after its length
MAX_HEADER: Final = 2**20   # bytes
MAX_FILE: Final = 2**31     # bytes


def weights(block: Any) -> dict[str, Array]:
    """Copies of a block's arrays, running statistics included, by canonical name.

    bfloat16 comes as float32. What a layer computes (weight norm, pruning, LoRA) comes as the layer uses it now. Raises
    TypeError for what is no block, ValueError for one whose layers do not hold its arrays as floating-point numbers.
    """
    return adapter(backend_of(block)).read(block)


def load_weights(block: Any, arrays: Mapping[str, Array]) -> None:
    """Put arrays, named and shaped as `weights` gives them, into a block; all of them, or on an error none.

    Raises ValueError for a missing, surplus or misshapen array, for numbers that are not finite, for numbers or a
    dtype that the block's own array cannot hold without loss, or where a layer computes an array and would not keep
    what is written (weight norm, pruning, LoRA); TypeError for what is no floating-point array.
    """
    to = adapter(backend_of(block))
    arrays, before = checked(arrays, block.spec, to.dtypes(block)), to.read(block)
    to.write(block, arrays)
    for name, array in to.read(block).items():
        if not np.array_equal(array, arrays[name].astype(array.dtype)):
            to.write(block, before)
            raise ValueError(f"expected {name} to hold what was written, got other numbers: it shares its memory")


def convert(block: Any, *, backend: str) -> Any:
    """A block's twin in `backend` ("torch" or "keras"): a new block of the same arguments, dtype and weights.

    Works for any module whose folder has attzoo's shape, registered or not. Raises ValueError for a block whose layers
    are not those that its class makes, or have other settings: another eps, GroupNorm for batch norm.
    """
    _check_layers(block)
    found = weights(block)
    twin = _make(block.spec, backend, adapter(backend_of(block)).dtype(block))
    load_weights(twin, found)
    return twin


def save(block: Any, path: str | os.PathLike[str]) -> None:
    """Write a block to one file that `load` opens in any backend.

    The file appears whole or not at all: a failed save leaves what was there. A symbolic link is replaced, not
    followed. Hooks are not part of a file. Raises ValueError when the path ends like a file of another format, or when
    the block is not registered, has other layers or methods than its class makes or other settings of them, holds
    numbers that are not finite or is larger than MAX_FILE, OSError when the path cannot be written, or holds a file
    that `save` did not write.
    """
    if has_other_ending(path := Path(path)):
        fix = "save to .safetensors, from which `attzoo convert` makes .pt and .keras"
        raise ValueError(f"expected a name that ends in .safetensors, got {path}, of another format: {fix}")
    data = content(block)
    _check_replaceable(path)
    write(path, data)


def _check_replaceable(path: Path) -> None:
    """Raise FileExistsError where a file is neither empty nor one that `save` wrote."""
    if path.is_symlink() or not path.is_file():   # a link is replaced, its target stays
        return
    with open_regular(path) as file:
        start = file.read(8 + len(OWN_START))
    if start and start[8:] != OWN_START:
        fix = "remove it first, or save to another name"
        raise FileExistsError(f"expected nothing or a file of attzoo.save at {path}, got another file: {fix}")


def has_other_ending(path: Path) -> bool:
    """Whether a file's name ends like one of another format."""
    return path.suffix.lower() in OTHER_FORMATS


def content(block: Any) -> bytes:
    """What `save` writes. Raises ValueError as it does."""
    _check_layers(block)
    arrays = checked(weights(block), block.spec, "float64")
    about = {"format": FORMAT, "block": registry.name_of(block.spec), "config": block.spec.config()}
    data = pack(arrays, about)
    if len(data) > MAX_FILE:
        raise ValueError(f"expected a block of at most {MAX_FILE} bytes, got {len(data)}")
    return data


def load(path: str | os.PathLike[str], *, backend: str) -> Any:
    """The block in a file that `save` wrote, as a block of `backend`.

    Raises ValueError for a file that is not exactly that, or is damaged, OSError for one that cannot be read or is no
    regular file.
    """
    path = Path(path)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            spec, dtype, about = _read_header(file, size)
            file.seek(0)
            arrays = checked(parse(file.read(size)), spec, dtype)
            verify(arrays, about, ("format", "block", "config"))
        except (ValueError, TypeError, ArithmeticError, RecursionError, SafetensorError) as err:
            raise ValueError(f"{path} is not a file of attzoo.save: {brief(str(err))}") from err
    block = _make(spec, backend, dtype)
    adapter(backend).write(block, arrays)
    return block


def checked(arrays: Any, spec: AnySpec, dtypes: str | Mapping[str, str]) -> dict[str, Array]:
    """The arrays in the machine's byte order, if they are a spec's, finite, and fit for `dtypes`.

    dtypes: one for all arrays, or that of each by its name. Raises TypeError or ValueError if not.
    """
    if not isinstance(arrays, Mapping):
        hint = "; a file is read by attzoo.load" if isinstance(arrays, (str, os.PathLike)) else ""
        raise TypeError(f"expected names with arrays, got {type(arrays).__name__}{hint}")
    expected = spec.weights
    missing = sorted(expected.keys() - arrays.keys())
    surplus = [name for name in arrays if name not in expected]
    if missing or surplus:
        got = f"; missing {brief(', '.join(missing))}" if missing else ""
        if surplus:
            got += f"; got also {brief(str(surplus))}{_renamed(arrays, expected) or nearest(surplus[0], missing)}"
        raise ValueError(f"expected weights {brief(', '.join(expected))}{got}")
    by_name = dict.fromkeys(expected, dtypes) if isinstance(dtypes, str) else dtypes
    return {name: _fit(name, arrays[name], weight.shape, by_name[name]) for name, weight in expected.items()}


def _renamed(arrays: Mapping[Any, Any], expected: Collection[str]) -> str:
    """How to get at the arrays of a spec in a checkpoint that holds them in an entry, or under longer names."""
    for key, entry in arrays.items():
        if isinstance(entry, Mapping):
            return f": give the arrays in its entry {brief(repr(key))}"
    first = next(iter(expected))
    prefixes = [name.removesuffix(first) for name in arrays if isinstance(name, str) and name.endswith(first)]
    for prefix in prefixes:
        if {prefix + name for name in expected} <= arrays.keys():
            return f": give those whose names begin with {brief(repr(prefix))}, without it"
    return ""


def _fit(name: str, array: Any, shape: tuple[int, ...], dtype: str) -> Array:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        hint = ": take tensor.numpy(force=True)" if hasattr(array, "requires_grad") else ""
        hint = hint or (": take numpy.asarray(...) of it" if not isinstance(array, np.ndarray) else "")
        raise TypeError(f"{name} must be a floating-point array, got {got}{hint}")
    if np.ma.is_masked(array):
        raise ValueError(f"{name} must have a number everywhere, got masked values: fill them first, array.filled(0)")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if wrong := np.count_nonzero(~np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {wrong} values that are not")
    fits = np.can_cast(array.dtype, "float32" if dtype == "bfloat16" else dtype)
    if fits and dtype == "bfloat16":   # the upper half of a float32
        fits = not np.any(array.astype(np.float32).view(np.uint32) & 0xFFFF)
    if not fits:
        raise ValueError(f"{name} must fit in {dtype}, got {array.dtype}: cast it first if the loss is meant")
    return np.asarray(array, array.dtype.newbyteorder("="))


def _check_layers(block: Any) -> None:
    """Raise ValueError unless a block computes what its spec says, which is all that a file or a twin knows of it."""
    backend = backend_of(block)
    adapter(backend).check_layers(block, registry.body(block.spec, backend))


def _make(spec: AnySpec, backend: str, dtype: str) -> Any:
    if backend == "numpy":
        raise ValueError('backend must be "torch" or "keras"; a spec holds no weights: take attzoo.weights(block)')
    cls = registry.body(spec, backend)   # first: it says what is missing where a framework is
    return adapter(backend).make(cls, spec.config(), dtype)


def _read_header(file: Any, size: int) -> tuple[AnySpec, str, dict[str, Any]]:
    """The spec, dtype and metadata that a file's header declares, after every claim in it has been checked."""
    if not 8 <= size <= MAX_FILE:
        raise ValueError(f"expected 8 to {MAX_FILE} bytes, got {size}")
    start = file.read(8)
    if other := next((text for begin, text in OTHER_STARTS.items() if start.startswith(begin)), None):
        raise ValueError(f"expected safetensors, got {other}: load it in its own framework, into a block to save")
    length = int.from_bytes(start, "little")
    if length > min(MAX_HEADER, size - 8):
        raise ValueError(f"expected a header of at most {min(MAX_HEADER, size - 8)} bytes, got {length}")
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or KEY not in metadata:
        hint = "; another program's file holds a state_dict, which block.load_state_dict takes"
        raise ValueError(f"expected metadata of attzoo, got {str(metadata)[:100]}{hint}")
    about = json.loads(metadata[KEY], object_pairs_hook=_unique)
    spec = _declared(about)
    if header.keys() != spec.weights.keys():
        raise ValueError(f"expected arrays {list(spec.weights)}, got {str(list(header))[:200]}")
    at, kinds = 0, set()
    for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
        weight, kind = spec.weights[name], entry.get("dtype") if isinstance(entry, dict) else None
        if kind not in list(DTYPES):
            raise ValueError(f"expected {name} of a dtype in {list(DTYPES)}, got {str(entry)[:200]}")
        end = at + weight.size * np.dtype(DTYPES[kind]).itemsize
        wanted = {"dtype": kind, "shape": list(weight.shape), "data_offsets": [at, end]}
        if json.dumps(entry, sort_keys=True) != json.dumps(wanted, sort_keys=True):   # == takes 1.0 and True for 1
            raise ValueError(f"expected {name} as {wanted}, got {str(entry)[:200]}")
        kinds.add(DTYPES[kind])
        at = end
    if size != 8 + length + at:
        raise ValueError(f"expected {8 + length + at} bytes, got {size}")
    return spec, np.result_type(*kinds).name, about


def _declared(about: Any) -> AnySpec:
    """The spec that a file's metadata names."""
    number = about.get("format") if isinstance(about, dict) else None
    if number != FORMAT:
        hint = ": a newer attzoo wrote it, update this one" if isinstance(number, int) and number > FORMAT else ""
        raise ValueError(f"expected format {FORMAT}, got {str(about)[:100]}{hint}")
    config = about.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"expected a block's arguments, got {str(config)[:100]}")
    cls = registry.get(about.get("block", ""), backend="numpy")
    return cls(**upgraded(cls, config))


def _begin(entry: Any) -> int:
    """The byte at which a file says that an array begins; entries that do not say it go first, and are refused."""
    match entry:
        case {"data_offsets": [int(begin), *_]}:
            return begin
    return -1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"expected every key once, got {keys[:20]}")
    return dict(pairs)
