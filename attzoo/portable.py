"""Transfer of weights between frameworks: as arrays by canonical name, by conversion of a block, and by files.

A file is in safetensors format. Its metadata holds, as JSON under the key "attzoo", the version of the format, the
name of the block, its resolved arguments and a checksum. Equal blocks give equal files on every backend. A file holds
no code. Every name, shape, dtype and size in its header is checked before memory is allocated.
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
from .adapters import adapter, backend_of, framework_of
from .archive import KEY, pack, verify
from .contract import AnySpec, Array, Keys, prefixed, shorten, upgraded
from .exchange import arrays_for, arrays_from, unwrapped, without_wrappers
from .files import open_regular, write
from .hints import nearest

FORMAT: Final = 1
DTYPES: Final = {"F16": "float16", "F32": "float32", "F64": "float64"}   # safetensors' name -> NumPy's
OTHER_FORMATS: Final = (   # file extensions
    ".bin", ".ckpt", ".h5", ".hdf5", ".joblib", ".json", ".keras", ".msgpack", ".npy", ".npz", ".onnx", ".pb",
    ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".tar", ".tflite", ".zip",
)   # fmt: skip
OTHER_STARTS: Final = {   # first bytes of a file -> its format
    b"PK\x03\x04": "a zip archive, as torch.save, numpy.savez and Keras write",
    b"\x89HDF\r\n\x1a\n": "HDF5, as Keras writes",
    b"\x93NUMPY": "a .npy file of NumPy",
}
OWN_START: Final = f'{{"__metadata__":{{"{KEY}":'.encode()   # start of the header, after its length
MAX_HEADER: Final = 2**20   # bytes
MAX_FILE: Final = 2**31     # bytes


def weights(block: Any) -> dict[str, Array]:
    """Return copies of a block's arrays, running statistics included, by canonical name.

    bfloat16 is returned as float32. An array that a layer computes (weight norm, pruning, LoRA) is returned as the
    layer uses it now.

    Raises:
        TypeError: `block` is not a block.
        ValueError: a layer does not hold its arrays as floating-point numbers.

    """
    return adapter(backend_of(block)).read(block)


def load_weights(block: Any, arrays: Mapping[str, Any], *, source: str | None = None) -> None:
    """Write arrays to a block in place. On an error no array changes.

    Args:
        block: the block or U-Net, of torch or Keras; with `source` also any model that holds blocks, which finds the
            arrays of each block under the path of the block in the model.
        arrays: arrays with the names and shapes that `weights` returns or, with `source`, a state dict of that library,
            for Keras a dict of the variables by their attribute `path`.
        source: another library or repository, such as "timm"; `attzoo.info(block)` lists those of a block. Keys and
            shapes do not tell every argument of a block, such as its gate: create the block with them, for example by
            `variant`. A prefix of all keys of the block is ignored, and so are keys without this prefix.

    Raises:
        TypeError: a value is not a floating-point array.
        ValueError: an array is missing, unknown, of another shape or not finite, or the block's dtype cannot hold it
            without loss, or a layer computes the array (weight norm, pruning, LoRA) and would overwrite it; with
            `source`, the state dict holds several blocks, or arrays of the block that attzoo's block lacks.

    """
    if source is not None:
        _load_from(block, arrays, source)
    else:
        framework = adapter(backend_of(block))
        _write(block, checked(arrays, block.spec, framework.dtypes(block)))


def _load_from(model: Any, state: Any, source: str) -> None:
    """Write the arrays of another library's state dict to a block, or to every block of a model, or to none."""
    parts, state = _outermost(model), unwrapped(state)
    arrays = {path: _arrays_of(part, path, state, source) for path, part in parts.items()}
    before: list[tuple[Any, dict[str, Array]]] = []   # of the blocks that are written
    try:
        for path, part in parts.items():
            old = weights(part)
            _write(part, arrays[path])
            before.append((part, old))
    except BaseException:
        for part, old in before:
            adapter(backend_of(part)).write(part, old)
        raise


def _arrays_of(block: Any, path: str, state: Mapping[str, Any], source: str) -> dict[str, Array]:
    """Return the arrays of a block by canonical name from another library's state dict. An error names the path."""
    inside = {key: value for key, value in state.items() if key.startswith(f"{path}.")} if path else state
    try:
        arrays = arrays_from(inside, block.spec, _layouts(block.spec, "source", source), source)
        return checked(arrays, block.spec, adapter(backend_of(block)).dtypes(block))
    except (TypeError, ValueError) as err:
        if not path:
            raise
        raise type(err)(f"{path}: {err}") from err


def _outermost(model: Any) -> dict[str, Any]:
    """Return a block or network by the path "", or the blocks of a model that lie in no other block, by their paths.

    Raise TypeError for anything else.
    """
    backend = framework_of(model)
    if backend is None or isinstance(getattr(model, "spec", None), AnySpec):
        backend_of(model)   # raises the error
        return {"": model}
    found = adapter(backend).blocks(model)
    parts = {path: part for path, part in found.items() if not any(path.startswith(f"{other}.") for other in found)}
    if not parts:
        backend_of(model)   # raises the error
    return {without_wrappers(path): part for path, part in parts.items()}


def _write(block: Any, arrays: Mapping[str, Array]) -> None:
    """Write checked arrays to a block. On an error no array changes."""
    framework = adapter(backend_of(block))
    before = framework.read(block)
    framework.write(block, arrays)
    for name, array in framework.read(block).items():
        if not np.array_equal(array, arrays[name].astype(array.dtype)):
            framework.write(block, before)
            fix = "another array of the block shares its memory, separate them first"
            raise ValueError(f"expected {name} to hold the array written to it, got other numbers: {fix}")


def export_weights(block: Any, *, target: str) -> dict[str, Array]:
    """Return the arrays of a block with the keys and shapes of another library's state dict, as NumPy arrays.

    Args:
        block: the block or U-Net, of torch or Keras, or any model that holds blocks, whose paths begin the keys then.
        target: the library or repository, as `source` in `load_weights`.

    Raises:
        TypeError: `block` is not a block.
        ValueError: the target is unknown, or has no key for an array of the block.

    """
    exported: dict[str, Array] = {}
    for path, part in _outermost(block).items():
        arrays = arrays_for(weights(part), part.spec, _layouts(part.spec, "target", target)[0])
        exported |= prefixed(path, arrays) if path else arrays
    return exported


def _layouts(spec: AnySpec, argument: str, name: str) -> tuple[Keys, ...]:
    """Return how the library `name` stores the arrays of a block. Raise ValueError if the block has no such library.

    `argument`, "source" or "target", is the argument that holds `name`, for the error.
    """
    block = registry.name_of(spec)
    known = registry.keys(block)
    layouts = known[registry.known_name(f"{argument} of {block}", name, known)]
    found: tuple[Keys, ...] = layouts(spec) if callable(layouts) else layouts
    return found


def convert(block: Any, *, backend: str) -> Any:
    """Return a new block of `backend`, "torch" or "keras", with the arguments, dtype and weights of `block`.

    Works for any module whose folder has the files of an attzoo block, registered or not.

    Raises:
        ValueError: a layer of the block was replaced or changed after its creation, e.g. it has another eps.

    """
    _check_layers(block)
    arrays = weights(block)
    converted = _make(block.spec, backend, adapter(backend_of(block)).dtype(block))
    load_weights(converted, arrays)
    return converted


def save(block: Any, path: str | os.PathLike[str]) -> None:
    """Write a block to a file that `load` reads in any backend.

    The file is written atomically: a failed save leaves an existing file unchanged. A symbolic link is replaced, not
    followed. Hooks are not saved.

    Raises:
        ValueError: the path has the extension of another format, or the block is not registered, has other layers,
            methods or settings than its class makes, holds numbers that are not finite or is larger than MAX_FILE.
        OSError: the path cannot be written, or holds a file that `save` did not write.

    """
    if has_other_ending(path := Path(path)):
        fix = "save to .safetensors, from which `attzoo convert` makes .pt and .keras"
        raise ValueError(f"expected a name that ends in .safetensors, got {path}: {fix}")
    data = content(block)
    _check_replaceable(path)
    write(path, data)


def _check_replaceable(path: Path) -> None:
    """Raise FileExistsError if `path` is a file that is not empty and that `save` did not write."""
    if path.is_symlink() or not path.is_file():   # a link is replaced, its target is not changed
        return
    with open_regular(path) as file:
        start = file.read(8 + len(OWN_START))
    if start and start[8:] != OWN_START:
        fix = "remove it first, or save to another name"
        raise FileExistsError(f"expected nothing or a file of attzoo.save at {path}, got another file: {fix}")


def has_other_ending(path: Path) -> bool:
    """Whether a file name has the extension of a format other than safetensors, such as .pt."""
    return path.suffix.lower() in OTHER_FORMATS


def content(block: Any) -> bytes:
    """Return the content of a block's file, as `save` writes it. Raise ValueError as `save` does."""
    _check_layers(block)
    arrays = checked(weights(block), block.spec, "float64")
    about = {"format": FORMAT, "block": registry.name_of(block.spec), "config": block.spec.config()}
    data = pack(arrays, about)
    if len(data) > MAX_FILE:
        raise ValueError(f"expected a block of at most {MAX_FILE} bytes, got {len(data)}")
    return data


def load(path: str | os.PathLike[str], *, backend: str) -> Any:
    """Read a file that `save` wrote and return its block as a block of `backend`.

    Raises:
        ValueError: `save` did not write the file, or the file is damaged.
        OSError: the file cannot be read or is not a regular file.

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
            raise ValueError(f"{path} is not a file of attzoo.save, or is damaged: {shorten(str(err))}") from err
    block = _make(spec, backend, dtype)
    adapter(backend).write(block, arrays)
    return block


def checked(arrays: Any, spec: AnySpec, dtypes: str | Mapping[str, str]) -> dict[str, Array]:
    """Return the arrays in native byte order after checks of names, shapes, finite values and dtypes.

    Args:
        arrays: array by canonical name.
        spec: the spec that declares the names and shapes.
        dtypes: the dtype that must hold every array without loss, or such a dtype by name.

    Raises:
        TypeError: `arrays` is not a mapping, or a value is not a floating-point array.
        ValueError: any other check fails.

    """
    if not isinstance(arrays, Mapping):
        hint = "; to read a file, call attzoo.load" if isinstance(arrays, (str, os.PathLike)) else ""
        raise TypeError(f"expected a mapping of names to arrays, got {type(arrays).__name__}{hint}")
    expected = spec.weights
    missing = sorted(expected.keys() - arrays.keys())
    surplus = [name for name in arrays if name not in expected]
    if missing or surplus:
        got = f"; missing {shorten(', '.join(missing))}" if missing else ""
        if surplus:
            got += f"; got also {shorten(str(surplus))}{_renamed(arrays, expected) or nearest(surplus[0], missing)}"
        raise ValueError(f"expected weights {shorten(', '.join(expected))}{got}")
    by_name = dict.fromkeys(expected, dtypes) if isinstance(dtypes, str) else dtypes
    return {name: _fit(name, arrays[name], weight.shape, by_name[name]) for name, weight in expected.items()}


def _renamed(arrays: Mapping[Any, Any], expected: Collection[str]) -> str:
    """Return a hint for a checkpoint that nests the expected arrays in an entry or prefixes their names, else ""."""
    for key, entry in arrays.items():
        if isinstance(entry, Mapping):
            return f": pass the mapping in the entry {shorten(repr(key))} instead"
    first = next(iter(expected))
    prefixes = [name.removesuffix(first) for name in arrays if isinstance(name, str) and name.endswith(first)]
    for prefix in prefixes:
        if {prefix + name for name in expected} <= arrays.keys():
            return f": pass those whose names begin with {shorten(repr(prefix))}, without this prefix"
    return ""


def _fit(name: str, array: Any, shape: tuple[int, ...], dtype: str) -> Array:
    """Return `array` in native byte order. Raise unless it is finite, of `shape` and held by `dtype` without loss.

    A bfloat16 array, to which NumPy converts bfloat16 arrays of JAX, is returned as float32.
    """
    if isinstance(array, np.ndarray) and array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        hint = ": convert it by tensor.numpy(force=True)" if hasattr(array, "requires_grad") else ""
        hint = hint or (": convert it by numpy.asarray(...)" if not isinstance(array, np.ndarray) else "")
        raise TypeError(f"{name} must be a floating-point array, got {got}{hint}")
    if np.ma.is_masked(array):
        raise ValueError(f"{name} must have no masked values, got a masked array: fill them first, array.filled(0)")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if nonfinite := np.count_nonzero(~np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {nonfinite} values that are nan or infinite")
    fits = np.can_cast(array.dtype, "float32" if dtype == "bfloat16" else dtype)
    if fits and dtype == "bfloat16":   # bfloat16 is the upper 16 bits of float32
        fits = not np.any(array.astype(np.float32).view(np.uint32) & 0xFFFF)
    if not fits:
        raise ValueError(f"{name} must be exact in {dtype}, the block's dtype, got {array.dtype}: round it first")
    return np.asarray(array, array.dtype.newbyteorder("="))


def _check_layers(block: Any) -> None:
    """Only check: raise ValueError if layers of a block were replaced or changed after its creation.

    A file and a conversion store the arguments of the block and its arrays, but no layers.
    """
    backend = backend_of(block)
    adapter(backend).check_layers(block, registry.class_of(block.spec, backend))


def _make(spec: AnySpec, backend: str, dtype: str) -> Any:
    """Return a new block of `backend` with the arguments of `spec`. Raise ValueError for backend "numpy"."""
    if backend == "numpy":
        raise ValueError('backend must be "torch" or "keras", got "numpy": for NumPy arrays call attzoo.weights(block)')
    cls = registry.class_of(spec, backend)   # before `adapter`: its error names the missing package
    return adapter(backend).make(cls, spec.config(), dtype)


def _read_header(file: Any, size: int) -> tuple[AnySpec, str, dict[str, Any]]:
    """Read and check the header of a file of `size` bytes. Return its spec, widest dtype and metadata."""
    if not 8 <= size <= MAX_FILE:
        raise ValueError(f"expected 8 to {MAX_FILE} bytes, got {size}")
    start = file.read(8)
    if got := next((text for magic, text in OTHER_STARTS.items() if start.startswith(magic)), None):
        raise ValueError(f"expected safetensors, got {got}: load it by its library, and save the block by attzoo.save")
    length = int.from_bytes(start, "little")
    if length > min(MAX_HEADER, size - 8):
        raise ValueError(f"expected a header of at most {min(MAX_HEADER, size - 8)} bytes, got {length}")
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or KEY not in metadata:
        hint = "; for a file of another program, pass its arrays to attzoo.load_weights(block, arrays, source=...)"
        raise ValueError(f"expected metadata of attzoo, got {str(metadata)[:100]}{hint}")
    about = json.loads(metadata[KEY], object_pairs_hook=_unique)
    spec = _declared(about)
    if header.keys() != spec.weights.keys():
        raise ValueError(f"expected arrays {list(spec.weights)}, got {str(list(header))[:200]}")
    offset, dtypes = 0, set()   # offset in bytes after the header
    for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
        weight, dtype = spec.weights[name], entry.get("dtype") if isinstance(entry, dict) else None
        if dtype not in list(DTYPES):
            raise ValueError(f"expected {name} of a dtype in {list(DTYPES)}, got {str(entry)[:200]}")
        end = offset + weight.size * np.dtype(DTYPES[dtype]).itemsize
        expected = {"dtype": dtype, "shape": list(weight.shape), "data_offsets": [offset, end]}
        if json.dumps(entry, sort_keys=True) != json.dumps(expected, sort_keys=True):   # in Python 1 == 1.0 == True
            raise ValueError(f"expected {name} as {expected}, got {str(entry)[:200]}")
        dtypes.add(DTYPES[dtype])
        offset = end
    if size != 8 + length + offset:
        raise ValueError(f"expected {8 + length + offset} bytes, got {size}")
    return spec, np.result_type(*dtypes).name, about


def _declared(about: Any) -> AnySpec:
    """Return the spec of the block that a file's metadata describes. Raise ValueError or TypeError if it is invalid."""
    number = about.get("format") if isinstance(about, dict) else None
    if number != FORMAT:
        hint = ": a newer attzoo wrote it, update this one" if isinstance(number, int) and number > FORMAT else ""
        if isinstance(about, dict) and "history" in about:
            hint = ": it is the state of a training run, whose network is in best.safetensors beside it"
        raise ValueError(f"expected format {FORMAT}, got {str(about)[:100]}{hint}")
    config = about.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"expected a mapping of a block's arguments, got {str(config)[:100]}")
    cls = registry.get(about.get("block", ""), backend="numpy")
    return cls(**upgraded(cls, config))


def _begin(entry: Any) -> int:
    """Return the offset of an array's first byte from its entry in the header, or -1 for an invalid entry."""
    match entry:
        case {"data_offsets": [int(begin), *_]}:
            return begin
    return -1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of the pairs (key, value) of a JSON object. Raise ValueError for duplicate keys."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"expected no key twice in a JSON object, got {keys[:20]}")
    return dict(pairs)
