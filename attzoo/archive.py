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


def pack(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> bytes:
    """Return the bytes of a safetensors file with `arrays` and, in its metadata, `about` and a checksum of both.

    Equal arguments give equal bytes. Each array is copied to C order first, because safetensors writes memory as it is.
    """
    arrays = {name: contiguous(array) for name, array in arrays.items()}
    return serialize(arrays, metadata={KEY: json.dumps({**about, CHECKSUM: digest(arrays, about)})})


def verify(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any], keys: Collection[str]) -> None:
    """Raise ValueError if the metadata `about` of a file has unknown keys, or a checksum of other content. Only check.

    `keys` are the known keys besides the checksum, which is of `arrays` and the other metadata.
    Files of older versions have no checksum and pass.
    """
    if surplus := sorted(about.keys() - {*keys, CHECKSUM}):
        raise ValueError(f"expected {', '.join(keys)} in the metadata, got also {shorten(str(surplus))}")
    content = {key: value for key, value in about.items() if key != CHECKSUM}
    if CHECKSUM in about and about[CHECKSUM] != digest(arrays, content):
        raise ValueError(f"expected the {CHECKSUM} in the metadata, got content of another: the file is damaged")


def digest(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of `about` and of C-contiguous arrays with their names, dtypes and shapes."""
    checksum = sha256(json.dumps(about, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        checksum.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return checksum.hexdigest()
