"""Arrays, and what is known about them as JSON, in the bytes of one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any, Final

from numpy.typing import NDArray
from safetensors.numpy import save as serialize

from .contract import brief, contiguous

KEY: Final = "attzoo"   # of the metadata; one entry, as safetensors shuffles several
CHECKSUM: Final = "sha256"


def pack(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> bytes:
    """The content of a file: arrays by name, `about` in its metadata, and there a checksum of both.

    Equal arguments give equal bytes. safetensors writes arrays as they lie in memory, so each is made C-contiguous
    before.
    """
    arrays = {name: contiguous(array) for name, array in arrays.items()}
    return serialize(arrays, metadata={KEY: json.dumps({**about, CHECKSUM: digest(arrays, about)})})


def verify(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any], keys: Collection[str]) -> None:
    """Raise ValueError unless `about`, as read from a file, has these keys and the checksum of what was read.

    Files of older versions have none, and pass.
    """
    if surplus := sorted(about.keys() - {*keys, CHECKSUM}):
        raise ValueError(f"expected {', '.join(keys)} in the metadata, got also {brief(str(surplus))}")
    facts = {key: value for key, value in about.items() if key != CHECKSUM}
    if CHECKSUM in about and about[CHECKSUM] != digest(arrays, facts):
        raise ValueError(f"expected the {CHECKSUM} in its metadata, got another of its content: the file is damaged")


def digest(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str:
    """SHA-256 of C-contiguous arrays, with their names, dtypes and shapes, and of what is known about them."""
    found = sha256(json.dumps(about, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()
