"""Types of arrays and shapes, and functions for coefficients, paths and memory order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Coefficients = Array | dict[str, Array]   # of a block: one array, or several by name
Shape = Sequence[int | None]


def by_name(coefficients: Any) -> dict[str, Any]:
    """Return the coefficients of a block, arrays or tensors, by name. A single array has the name "".

    >>> by_name(0.5), by_name({"channel": 0.5, "position": 0.25})
    ({'': 0.5}, {'channel': 0.5, 'position': 0.25})
    """
    return coefficients if isinstance(coefficients, dict) else {"": coefficients}


def map_coefficients(function: Callable[[Any], Any], coefficients: Any) -> Any:
    """Return the coefficients of a block with a function applied to each array.

    >>> map_coefficients(str, 0.5), map_coefficients(str, {"channel": 0.5})
    ('0.5', {'channel': '0.5'})
    """
    if isinstance(coefficients, dict):
        return {name: function(array) for name, array in coefficients.items()}
    return function(coefficients)


def join_path(path: str, name: str) -> str:
    """Return a path with a name appended; both may be "".

    >>> join_path("layer3.attention", "channel"), join_path("layer3.attention", ""), join_path("", "channel")
    ('layer3.attention.channel', 'layer3.attention', 'channel')
    """
    return ".".join(filter(None, (path, name)))


def contiguous(array: Any) -> NDArray[Any]:
    """Return a copy in C order. Every array that the library returns is in C order.

    >>> contiguous(np.zeros((2, 3)).T[::-1]).strides
    (16, 8)
    """
    return np.array(array, order="C")
