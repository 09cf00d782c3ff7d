"""Weights that travel: as arrays with canonical names, into a twin in the other framework, and as one file for both.

A file is safetensors: the arrays, and in its metadata the block's name, its resolved arguments and the format's
version. Nothing in it can run, and it is refused before anything is allocated unless every name, shape, dtype and
size in it is what that block has.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialize

from . import registry
from .adapters import adapter, backend_of
from .contract import Array, Spec

FORMAT: Final = "1"
DTYPES: Final = {"F16": "float16", "F32": "float32", "F64": "float64"}   # safetensors' name -> NumPy's
MAX_HEADER: Final = 2**20   # bytes
MAX_FILE: Final = 2**31     # bytes


def weights(block: Any) -> dict[str, Array]:
    """Copies of a block's arrays, running statistics included, by canonical name.

    bfloat16 comes as float32. Raises TypeError for what is no block.
    """
    return adapter(backend_of(block)).read(block)


def load_weights(block: Any, arrays: Mapping[str, Array]) -> None:
    """Put arrays, named and shaped as `weights` gives them, into a block; all of them, or on an error none.

    Raises ValueError for a missing, surplus or misshapen array, for numbers that are not finite, or for a dtype
    that the block's cannot hold without loss; TypeError for what is no floating-point array.
    """
    to = adapter(backend_of(block))
    check_arrays(arrays, block.spec, to.dtype(block))
    to.write(block, arrays)


def convert(block: Any, *, backend: str) -> Any:
    """A block's twin in `backend` ("torch" or "keras"): a new block of the same arguments, dtype and weights.

    Works for any module whose folder has attzoo's shape, registered or not.
    """
    found = weights(block)
    twin = _make(block.spec, backend, adapter(backend_of(block)).dtype(block))
    load_weights(twin, found)
    return twin


def save(block: Any, path: str | os.PathLike[str]) -> None:
    """Write a block to one file that `load` opens in any backend.

    The file appears whole or not at all: a failed save leaves what was there. Raises ValueError when the block is
    not registered or holds numbers that are not finite, OSError when the path cannot be written.
    """
    path = Path(path)
    found = weights(block)
    check_arrays(found, block.spec, "float64")
    about = {"format": FORMAT, "block": registry.name_of(block.spec), "config": json.dumps(block.spec.config())}
    data = serialize(found, metadata=about)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())   # as open() would have made it
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def load(path: str | os.PathLike[str], *, backend: str) -> Any:
    """The block in a file that `save` wrote, as a block of `backend`.

    Raises ValueError for a file that is not exactly that, OSError for one that cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            spec, dtype = _read_header(file, size)
        except ValueError as err:
            raise ValueError(f"{path} is not a file of attzoo.save: {err}") from err
        file.seek(0)
        arrays = parse(file.read(size))
    block = _make(spec, backend, dtype)
    load_weights(block, arrays)
    return block


def check_arrays(arrays: Mapping[str, Array], spec: Spec, dtype: str) -> None:
    """Raise TypeError or ValueError unless these are a spec's arrays, finite, and fit for `dtype`."""
    wanted = spec.weights
    if missing := sorted(wanted.keys() - arrays.keys()):
        raise ValueError(f"expected weights {', '.join(wanted)}; missing {', '.join(missing)}")
    if surplus := sorted(map(str, arrays.keys() - wanted.keys())):
        raise ValueError(f"expected weights {', '.join(wanted)}; got also {', '.join(surplus)[:200]}")
    for name, weight in wanted.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"{name} must be a floating-point array, got {got}")
        if array.shape != weight.shape:
            raise ValueError(f"{name} must have shape {weight.shape}, got {array.shape}")
        holder = "float32" if dtype == "bfloat16" else dtype
        if not np.can_cast(array.dtype, holder):
            raise ValueError(f"{name} must fit in {dtype}, got {array.dtype}: cast it first if the loss is meant")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(array))} values that are not")


def _make(spec: Spec, backend: str, dtype: str) -> Any:
    if backend == "numpy":
        raise ValueError('backend must be "torch" or "keras"; a spec holds no weights: take attzoo.weights(block)')
    cls = registry.body(spec, backend)   # first: it says what is missing where a framework is
    return adapter(backend).make(cls, spec.config(), dtype)


def _read_header(file: Any, size: int) -> tuple[Spec, str]:
    """The spec and dtype that a file's header declares, after every claim in it has been checked."""
    if size > MAX_FILE:
        raise ValueError(f"expected at most {MAX_FILE} bytes, got {size}")
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise ValueError(f"expected a header of at most {min(MAX_HEADER, max(0, size - 8))} bytes, got {length}")
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    about = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"expected metadata of format {FORMAT}, got {str(about)[:100]}")
    spec = _declared(about)
    at, kinds = 0, set()
    if header.keys() != spec.weights.keys():
        raise ValueError(f"expected arrays {', '.join(spec.weights)}, got {', '.join(header)[:200]}")
    for name, entry in sorted(header.items(), key=lambda item: str(item[1])):
        shape, kind = spec.weights[name].shape, entry.get("dtype") if isinstance(entry, dict) else None
        if kind not in DTYPES or entry.get("shape") != list(shape):
            raise ValueError(f"expected {name} of shape {list(shape)} and a dtype of {list(DTYPES)}, got {str(entry)[:200]}")
        kinds.add(DTYPES[kind])
    for name in sorted(header, key=lambda name: header[name].get("data_offsets") or []):
        end = at + spec.weights[name].size * np.dtype(DTYPES[header[name]["dtype"]]).itemsize
        if header[name].get("data_offsets") != [at, end]:
            raise ValueError(f"expected {name} at bytes {[at, end]}, got {str(header[name].get('data_offsets'))[:100]}")
        at = end
    if size != 8 + length + at:
        raise ValueError(f"expected {8 + length + at} bytes, got {size}")
    if len(kinds) != 1:
        raise ValueError(f"expected one dtype, got {', '.join(sorted(kinds))}")
    return spec, kinds.pop()


def _declared(about: Mapping[str, Any]) -> Spec:
    """The spec that a file's metadata names."""
    cls = registry.get(about.get("block", ""), backend="numpy")
    config = json.loads(about.get("config", "null"), object_pairs_hook=_unique)
    if not isinstance(config, dict):
        raise ValueError(f"expected a block's arguments, got {str(config)[:100]}")
    try:
        return cls(**config)
    except TypeError as err:
        raise ValueError(str(err)) from err


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"expected every key once, got {keys[:20]}")
    return dict(pairs)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
