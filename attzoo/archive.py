"""Arrays, and what is known about them as JSON, in the bytes of one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from numpy.typing import NDArray
from safetensors.numpy import save as serialize

from .contract import contiguous

KEY: Final = "attzoo"   # of the metadata; one entry, as safetensors shuffles several


def pack(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> bytes:
    """The content of a file: arrays by name, and `about` in its metadata. Equal arguments give equal bytes.

    safetensors writes arrays as they lie in memory, so each is made C-contiguous before.
    """
    arrays = {name: contiguous(array) for name, array in arrays.items()}
    return serialize(arrays, metadata={KEY: json.dumps(about)})
