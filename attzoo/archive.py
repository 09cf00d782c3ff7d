"""Conversion of arrays and their JSON metadata to the bytes of one safetensors file, and checks of what was read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any, Final

from numpy.typing import NDArray
from safetensors.numpy import save as serialize

from .contract import contiguous, shorten

KEY: Final = "attzoo"   # metadata key; a single entry, because safetensors does not keep the order of several
CHECKSUM: Final = "sha256"


def pack(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> bytes:
    """Return the bytes of a safetensors file with `arrays` and, in its metadata, `metadata` and a checksum of both.

    Equal arguments give equal bytes. Each array is copied to C order first, because safetensors writes memory as it is.
    """
    arrays = {name: contiguous(array) for name, array in arrays.items()}
    return serialize(arrays, metadata={KEY: json.dumps({**metadata, CHECKSUM: digest(arrays, metadata)})})


def verify(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any], keys: Collection[str]) -> None:
    """Raise ValueError if the metadata of a file has unknown keys, or a checksum that does not match its content.

    Files of older versions have no checksum and pass.

    Args:
        arrays: the arrays in the file.
        metadata: the metadata of the file, with the checksum of the arrays and of the other metadata.
        keys: the known keys of the metadata, without the checksum.

    """
    if surplus_keys := sorted(metadata.keys() - {*keys, CHECKSUM}):
        raise ValueError(f"expected {', '.join(keys)} in the metadata, got also {shorten(str(surplus_keys))}")
    content = {key: value for key, value in metadata.items() if key != CHECKSUM}
    if CHECKSUM in metadata and metadata[CHECKSUM] != digest(arrays, content):
        fix = "the file is damaged, copy it again"
        raise ValueError(f"expected content with the {CHECKSUM} in the metadata, got other content: {fix}")


def digest(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of metadata and of arrays: names, dtypes, shapes and C-contiguous values."""
    checksum = sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        checksum.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return checksum.hexdigest()
