"""Transfer weights between frameworks: as arrays by canonical name, by conversion of a block, and by files.

A file is in safetensors format, with the metadata that `header` describes. It contains one block or network, or all
blocks of a model. Equal blocks give equal files on every backend. A file contains no code. Every name, shape, dtype and
size in its header is checked before memory is allocated.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse

from . import registry
from .adapters import adapter, backend_of, framework_of
from .archive import pack, verify
from .contract import AnySpec, Array, Weight, shorten
from .files import open_regular, write
from .header import KEYS, MAX_FILE, MAX_HEADER, OWN_STARTS, metadata_of, read_header, weights_of
from .hints import nearest
from .library_weights import error_without_source, read_parts, write_parts
from .parts import Loaded, Part, is_single, loaded_report, match_parts, parts_of, read_all, rename_arrays, write_all

OTHER_FORMATS: Final = (   # file extensions
    ".bin", ".ckpt", ".h5", ".hdf5", ".joblib", ".json", ".keras", ".msgpack", ".npy", ".npz", ".onnx", ".pb",
    ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".tar", ".tflite", ".zip",
)   # fmt: skip


def weights(model: Any) -> dict[str, Array]:
    """Return copies of the arrays of a block, or of all blocks of a model, running statistics included, by name.

    The names are canonical; in a model, each begins with the path of the block and a dot. Arrays of other layers are
    not returned. bfloat16 is returned as float32. An array that a layer computes (weight norm, pruning, LoRA) is
    returned as the layer uses it now.

    Args:
        model: a block or network of attzoo, or a torch module or Keras layer that contains some. A network, such as a
            U-Net, inside a model counts as one block. A block attached with start="identity" has the further array
            "gamma".

    Raises:
        TypeError: `model` contains no block.
        ValueError: a layer does not store its arrays as floating-point numbers.

    """
    return read_all(parts_of(model))


def load_weights(model: Any, arrays: Any, *, source: str | None = None) -> Loaded:
    """Write weights to a block, or to all blocks of a model, in place. After an error no array has changed.

    Blocks of a file or of another model are matched by their paths, if these are the same, as in two models of one
    framework. Otherwise blocks of the same arguments are matched in their order, which is the order of `named_modules`
    in torch and of `model.layers` in Keras. With `source`, blocks without their paths in the state dict are matched in
    its order, if it has as many blocks of the same shapes. Print the result to see the matches.

    Args:
        model: a block or network of attzoo, or a torch module or Keras layer that contains some; all are written.
        arrays: arrays with the names and shapes that `weights` returns; or the path of a file that `save` wrote; or
            another model or block, of either framework; or, with `source`, a state dict of that library or the path
            of its file (.pth, .safetensors), for Keras a dict of the variables by their attribute `path`. In a state
            dict of a model, the keys of a block begin with the path of the block in `model`.
        source: another library or repository, such as "timm"; `attzoo.info(block)` lists those of a block. Keys and
            shapes do not tell every argument of a block, such as its gate: create the block with them, for example by
            `variant`. A prefix of all keys of the block is ignored, and so are keys without this prefix.

    Returns:
        The blocks whose weights were written, and the source of each.

    Raises:
        TypeError: `model` contains no block, or a value is not a floating-point array.
        ValueError: an array is missing, unknown, of another shape, not finite or not exact in the block's dtype, or
            a layer computes the array (weight norm, pruning, LoRA) and would overwrite it; the blocks of the file or of
            the other model are not those of `model`, or can be matched in several ways; with `source`, the
            state dict contains several blocks, or arrays that attzoo's block does not have.
        OSError: the file cannot be read.

    """
    parts = parts_of(model)
    matches = [(part, part, "path") for part in parts]
    if source is not None:
        matches, arrays = read_parts(parts, arrays, source)
    elif isinstance(arrays, (str, os.PathLike)) or framework_of(arrays) is not None:
        sources, arrays = _read_file(parts, Path(arrays)) if framework_of(arrays) is None else _read_model(arrays)
        matches = match_parts(parts, sources)
        arrays = rename_arrays(matches, arrays)
    dtypes = {name: dtype for part in parts for name, dtype in part.dtypes().items()}
    try:
        arrays = checked_arrays(arrays, weights_of(parts), dtypes)
    except ValueError as err:
        if source is not None or not isinstance(arrays, Mapping):
            raise
        raise error_without_source(parts, arrays, err) from err
    write_all(parts, arrays)
    return loaded_report(matches)


def _read_file(parts: list[Part], path: Path) -> tuple[list[Part], dict[str, Array]]:
    """Return the blocks in a file that `save` wrote, and their arrays. The error for other files names `source`.

    parts: the blocks of the model that is written.
    """
    try:
        return _read(path)
    except ValueError as err:
        raise error_without_source(parts, path, err) from err


def _read_model(model: Any) -> tuple[list[Part], dict[str, Array]]:
    """Return the blocks of a model, and their arrays. Raise TypeError if it contains none."""
    try:
        parts = parts_of(model)
    except TypeError as err:
        fix = "for weights of another library, pass its state dict and source="
        raise TypeError(f"arrays: {err}; {fix}") from err
    for part in parts:
        part.check_layers()
    return parts, read_all(parts)


def export_weights(model: Any, *, target: str) -> dict[str, Array]:
    """Return the arrays of a block with the keys and shapes of another library's state dict, as NumPy arrays.

    Args:
        model: the block or U-Net, of torch or Keras, or a model that contains blocks. The keys of a block in a model
            begin with its path.
        target: the library or repository, as `source` in `load_weights`.

    Raises:
        TypeError: `model` contains no block.
        ValueError: the target is unknown, or has no key for an array of the block, such as `gamma` of a block that was
            attached with start="identity": export the block inside if this factor is not needed.

    """
    return write_parts(parts_of(model), target)


def convert(block: Any, *, backend: str) -> Any:
    """Return a new block of `backend`, "torch" or "keras", with the arguments, dtype and weights of `block`.

    Works for any module whose folder has the files of an attzoo block, registered or not. A model
    with other layers cannot be converted: create the model in the other framework, with the same blocks, and call
    `load_weights(new_model, model)`.

    Raises:
        TypeError: `block` is not a block.
        ValueError: a layer of the block was replaced or changed after its creation, for example its eps.

    """
    parts = parts_of(block)
    if not is_single(parts):
        fix = "create it in the other framework with the same blocks, and call load_weights(new_model, model)"
        fix += ", or save(model, path) here and load_weights(new_model, path) there"
        got = f"a {type(block).__name__}, which besides blocks, at {_paths(parts)}, has layers that are not of attzoo"
        raise TypeError(f"expected a block or a network of attzoo, because only these are converted, got {got}: {fix}")
    (part,) = parts
    part.check_layers()
    new_block = _make(part.spec, backend, adapter(backend_of(part.block)).dtype(part.block))
    load_weights(new_block, part.read())
    return new_block


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a block, or all blocks of a model, to a file.

    `load` reads the file of one block, in any backend. `load_weights(model, path)` writes the weights of a file to a
    block or to a model with the same blocks, of either framework. Only blocks are saved: save the other layers of a
    model by its framework.

    The file is written atomically: a failed save leaves an existing file unchanged. A symbolic link is replaced, not
    followed. Hooks are not saved.

    Raises:
        TypeError: `model` contains no block.
        ValueError: the path has the extension of another format, or the block is not registered, has other layers,
            methods or settings than its class creates, contains numbers that are not finite, or is larger than
            MAX_FILE.
        OSError: the path cannot be written, or is a file that `save` did not write.

    """
    if has_other_ending(path := Path(path)):
        fix = "save to .safetensors, from which `attzoo convert` makes .pt and .keras"
        raise ValueError(f"expected a name that ends in .safetensors, got {path}: {fix}")
    data = content(model)
    check_replaceable(path)
    write(path, data)


def check_replaceable(path: Path) -> None:
    """Raise FileExistsError if `path` is a file that is not empty and that `save` did not write."""
    if path.is_symlink() or not path.is_file():   # a link is replaced, its target is not changed
        return
    with open_regular(path) as file:
        first_bytes = file.read(8 + max(map(len, OWN_STARTS)))
    if first_bytes and not first_bytes[8:].startswith(OWN_STARTS):
        fix = "remove it first, or save to another name"
        raise FileExistsError(f"expected nothing or a file of attzoo.save at {path}, got another file: {fix}")


def has_other_ending(path: Path) -> bool:
    """Whether a file name has the extension of a format other than safetensors, such as .pt."""
    return path.suffix.lower() in OTHER_FORMATS


def content(model: Any) -> bytes:
    """Return the content of a file of a block or model, as `save` writes it. Raise the errors of `save`."""
    parts = parts_of(model)
    for part in parts:
        part.check_layers()
    arrays = checked_arrays(read_all(parts), weights_of(parts), "float64")
    data = pack(arrays, metadata_of(parts))
    if len(data) > MAX_FILE:
        raise ValueError(f"expected a block of at most {MAX_FILE} bytes, got {len(data)}")
    if (header := int.from_bytes(data[:8], "little")) > MAX_HEADER:
        raise ValueError(f"expected blocks described by at most {MAX_HEADER} bytes, got {header}: save fewer at once")
    return data


def load(path: str | os.PathLike[str], *, backend: str) -> Any:
    """Read a file that `save` wrote and return its block as a block of `backend`.

    Raises:
        ValueError: `save` did not write the file, or the file is damaged, or contains the blocks of a model, which
            `load_weights` reads.
        OSError: the file cannot be read or is not a regular file.

    """
    parts, arrays = _read(Path(path))
    if not is_single(parts):
        fix = f"attzoo.load_weights(model, {str(path)!r}) writes them to a model"
        raise ValueError(f"expected a file of one block, got {path} with blocks at {_paths(parts)}: {fix}")
    dtype = np.result_type(*arrays.values()).name if arrays else "float32"   # a block may have no arrays
    block = _make(parts[0].spec, backend, dtype)
    adapter(backend).write(block, arrays)
    return block


def _read(path: Path) -> tuple[list[Part], dict[str, Array]]:
    """Return the blocks in a file that `save` wrote, and their arrays."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            header = read_header(file, size)
            file.seek(0)
            arrays = checked_arrays(parse(file.read(size)), weights_of(header.parts), header.dtype)
            verify(arrays, header.about, KEYS[header.about["format"]])
        except (ValueError, TypeError, ArithmeticError, RecursionError, SafetensorError) as err:
            reason, fix = shorten(str(err), 300), "copy it again, or save the block again by attzoo.save"
            raise ValueError(f"{path} is not a file of attzoo.save, or is damaged: {reason}; {fix}") from err
    return header.parts, arrays


def _paths(parts: list[Part]) -> str:
    """Return the paths of the first four parts, for an error."""
    return ", ".join(repr(part.path) for part in parts[:4]) + (", ..." if len(parts) > 4 else "")


def checked_arrays(arrays: Any, expected: Mapping[str, Weight], dtypes: str | Mapping[str, str]) -> dict[str, Array]:
    """Return the arrays in native byte order after checking names, shapes, finite values and dtypes.

    Args:
        arrays: array by name.
        expected: the declared names and shapes.
        dtypes: the dtype that must represent every array exactly, as one name or as a name for each array.

    Raises:
        TypeError: `arrays` is not a mapping, or a value is not a floating-point array.
        ValueError: any other check fails.

    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"expected a mapping of names to arrays, got {type(arrays).__name__}")
    missing = sorted(expected.keys() - arrays.keys())
    surplus = [name for name in arrays if name not in expected]
    if missing or surplus:
        got = f"; missing {shorten(', '.join(missing))}" if missing else ""
        if surplus:
            hint = _nesting_hint(arrays, expected) or nearest(surplus[0], missing)
            got += f"; got also {shorten(str(surplus))}{hint}"
        raise ValueError(f"expected weights {shorten(', '.join(expected))}{got}")
    dtype_by_name = dict.fromkeys(expected, dtypes) if isinstance(dtypes, str) else dtypes
    return {name: _fit(name, arrays[name], w.shape, dtype_by_name[name]) for name, w in expected.items()}


def _nesting_hint(arrays: Mapping[Any, Any], expected: Collection[str]) -> str:
    """Return the end of an error if the arrays are in an entry, under a prefix or a state dict of torch, else ""."""
    for key, entry in arrays.items():
        if isinstance(entry, Mapping):
            return f": pass the mapping in the entry {shorten(repr(key))} instead"
    first_name = next(iter(expected), None)
    if first_name is None:
        return ""
    prefixes = [name.removesuffix(first_name) for name in arrays if isinstance(name, str) and name.endswith(first_name)]
    for prefix in prefixes:
        if {prefix + name for name in expected} <= arrays.keys():
            return f": pass those whose names begin with {shorten(repr(prefix))}, without this prefix"
    if any(isinstance(name, str) and name.endswith(".running_mean") for name in arrays):   # a batch norm of torch
        return ": pass a state dict of PyTorch to load_state_dict, or with source= if it is of another library's block"
    return ""


def _fit(name: str, array: Any, shape: tuple[int, ...], dtype: str) -> Array:
    """Return `array` in native byte order. Raise unless it is finite, of `shape`, and exact in `dtype`.

    Raises TypeError if it is not a floating-point array, else ValueError. `name` is for the message. A bfloat16 array,
    to which NumPy converts bfloat16 arrays of JAX, is returned as float32.
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
    if nonfinite_count := np.count_nonzero(~np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {nonfinite_count} values that are nan or infinite")
    is_exact = np.can_cast(array.dtype, "float32" if dtype == "bfloat16" else dtype)
    if is_exact and dtype == "bfloat16":   # bfloat16 is the upper 16 bits of float32
        is_exact = not np.any(array.astype(np.float32).view(np.uint32) & 0xFFFF)
    if not is_exact:
        raise ValueError(f"{name} must be exact in {dtype}, the block's dtype, got {array.dtype}: round it first")
    return np.asarray(array, array.dtype.newbyteorder("="))


def _make(spec: AnySpec, backend: str, dtype: str) -> Any:
    """Return a new block of `backend` with the arguments of `spec`.

    Raise ValueError for backend "numpy" or an unknown one, or if the backend lacks the dtype, and ModuleNotFoundError
    if its package is not installed.
    """
    if backend == "numpy":
        raise ValueError('backend must be "torch" or "keras", got "numpy": for NumPy arrays call attzoo.weights(block)')
    cls = registry.class_of(spec, backend)   # before `adapter`: its error names the missing package
    return adapter(backend).make(cls, spec.config(), dtype)
