"""Write and check the header of attzoo's weight files. It is checked before any array is read.

A file is in safetensors format. Its metadata holds, as JSON under the key "attzoo":

- format 1, of one block or network: "format"; "block", its name; "config", its resolved arguments; a checksum;
- format 2, of all blocks of a model: "format"; "blocks", a list of mappings of "path" in the model, "block", "config"
  and "start", as in `attzoo.attach`; a checksum. The name of an array is the path, a dot, and its name in the block.
  Blocks with start "identity" have the further array "gamma".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np

from . import registry
from .archive import CHECKSUM, KEY
from .contract import STARTS, AnySpec, Weight, choice, shorten, upgraded
from .parts import Part, is_single

ONE_BLOCK: Final = 1
MODEL: Final = 2
KEYS: Final = {ONE_BLOCK: ("format", "block", "config"), MODEL: ("format", "blocks")}   # of the metadata
PART_KEYS: Final = ("path", "block", "config", "start")
DTYPES: Final = {"F16": "float16", "F32": "float32", "F64": "float64"}   # safetensors' name -> NumPy's
OTHER_SIGNATURES: Final = {   # first bytes of a file -> its format
    b"PK\x03\x04": "a zip archive, as torch.save, numpy.savez and Keras write",
    b"\x89HDF\r\n\x1a\n": "HDF5, as Keras writes",
    b"\x93NUMPY": "a .npy file of NumPy",
}
OWN_STARTS: Final = tuple(   # of the header, after its length; the state of a training run has other keys
    f'{{"__metadata__":{{"{KEY}":"{{\\"format\\": {number}, \\"{keys[1]}\\":'.encode() for number, keys in KEYS.items()
)
MAX_HEADER: Final = 2**20   # bytes
MAX_FILE: Final = 2**31     # bytes


@dataclass(frozen=True)
class Header:
    """The checked content of a file's header.

    Args:
        parts: the blocks or networks in the file.
        dtype: the widest dtype of the arrays.
        about: the metadata, decoded from JSON.

    """

    parts: list[Part]
    dtype: str
    about: dict[str, Any]


def metadata_of(parts: Sequence[Part]) -> dict[str, Any]:
    """Return the metadata of a file of these parts, without the checksum."""
    if is_single(parts):
        return {"format": ONE_BLOCK, **_described(parts[0])}
    blocks = [{"path": part.path, **_described(part), "start": part.start} for part in parts]
    return {"format": MODEL, "blocks": blocks}


def _described(part: Part) -> dict[str, Any]:
    """Return the name and the arguments of a part's block or network, as a file's metadata stores them."""
    return {"block": registry.name_of(part.spec), "config": part.spec.config()}


def read_header(file: BinaryIO, size: int) -> Header:
    """Read and check the header of a file of `size` bytes.

    Raises:
        ValueError: the file is not in the format of attzoo, or its header contradicts itself or the size.
        TypeError: an argument of a block has another type than its spec expects.

    """
    if not 8 <= size <= MAX_FILE:
        raise ValueError(f"expected 8 to {MAX_FILE} bytes, got {size}")
    first_bytes = file.read(8)
    if got := next((text for magic, text in OTHER_SIGNATURES.items() if first_bytes.startswith(magic)), None):
        raise ValueError(f"expected safetensors, got {got}: load it by its library, and save the block by attzoo.save")
    length = int.from_bytes(first_bytes, "little")
    if length > min(MAX_HEADER, size - 8):
        raise ValueError(f"expected a header of at most {min(MAX_HEADER, size - 8)} bytes, got {length}")
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or KEY not in metadata:
        hint = "; for a file of another program, pass its arrays to attzoo.load_weights(block, arrays, source=...)"
        raise ValueError(f"expected metadata of attzoo, got {str(metadata)[:100]}{hint}")
    description = json.loads(metadata[KEY], object_pairs_hook=_unique)
    parts = parse_parts(description)
    dtype, data = _check_entries(header, weights_of(parts))
    if size != 8 + length + data:
        raise ValueError(f"expected {8 + length + data} bytes, got {size}")
    return Header(parts, dtype, description)


def _check_entries(header: Mapping[str, Any], weights: Mapping[str, Weight]) -> tuple[str, int]:
    """Check the entries of a file's header against the described weights. Raise ValueError if they differ.

    Returns:
        The name of the widest dtype, and the size of all arrays in bytes.

    """
    if header.keys() != weights.keys():
        raise ValueError(f"expected arrays {shorten(str(list(weights)))}, got {str(list(header))[:200]}")
    offset, dtypes = 0, set()   # offset in bytes after the header
    for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
        weight, dtype = weights[name], entry.get("dtype") if isinstance(entry, dict) else None
        if dtype not in list(DTYPES):
            raise ValueError(f"expected {name} of a dtype in {list(DTYPES)}, got {str(entry)[:200]}")
        data_end = offset + weight.size * np.dtype(DTYPES[dtype]).itemsize
        expected = {"dtype": dtype, "shape": list(weight.shape), "data_offsets": [offset, data_end]}
        if json.dumps(entry, sort_keys=True) != json.dumps(expected, sort_keys=True):   # in Python 1 == 1.0 == True
            raise ValueError(f"expected {name} as {expected}, got {str(entry)[:200]}")
        dtypes.add(DTYPES[dtype])
        offset = data_end
    return np.result_type(*dtypes).name if dtypes else "float32", offset   # a block may have no arrays


def weights_of(parts: Sequence[Part]) -> dict[str, Weight]:
    """Return the description of every array of parts by name. Raise ValueError if two arrays have the same name."""
    weights: dict[str, Weight] = {}
    for part in parts:
        part_weights = part.weights   # computed at every access
        if duplicates := weights.keys() & part_weights.keys():
            got = f"two named {min(duplicates)}"
            raise ValueError(f"expected a different name for every array, got {got}: rename a layer of the model")
        weights |= part_weights
    return weights


def parse_parts(description: Any) -> list[Part]:
    """Return the parts that a file's metadata describes. Raise ValueError or TypeError if it is invalid."""
    number = description.get("format") if isinstance(description, dict) else None
    if number not in list(KEYS) or isinstance(number, bool):
        hint = ": a newer attzoo wrote it, update this one" if isinstance(number, int) and number > max(KEYS) else ""
        if isinstance(description, dict) and "history" in description:
            hint = ": it is the state of a training run, whose network is in best.safetensors beside it"
        raise ValueError(f"expected format {' or '.join(map(str, KEYS))}, got {str(description)[:100]}{hint}")
    if number == ONE_BLOCK:
        return [Part("", _spec(description))]
    blocks = description.get("blocks")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(f"expected a list of blocks, got {str(blocks)[:100]}")
    if CHECKSUM not in description:
        raise ValueError(f"expected a {CHECKSUM} in the metadata, got none")
    return [_part(block) for block in blocks]


def _part(block: Mapping[str, Any]) -> Part:
    """Return the part that an entry of "blocks" in a file's metadata describes.

    Raise ValueError or TypeError if it is invalid.
    """
    if sorted(block) != sorted(PART_KEYS):
        raise ValueError(f"expected {', '.join(PART_KEYS)} of each block, got {str(list(block))[:100]}")
    if not isinstance(block["path"], str):
        raise ValueError(f"expected the path of each block as text, got {str(block['path'])[:100]}")
    return Part(block["path"], _spec(block), choice("start", block["start"], STARTS))


def _spec(description: Mapping[str, Any]) -> AnySpec:
    """Return the spec that the keys "block" and "config" of `description` describe.

    Raise ValueError or TypeError if one is invalid.
    """
    config = description.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"expected a mapping of a block's arguments, got {str(config)[:100]}")
    cls = registry.get(description.get("block", ""), backend="numpy")
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
        raise ValueError(f"expected a JSON object without duplicate keys, got {keys[:20]}")
    return dict(pairs)
