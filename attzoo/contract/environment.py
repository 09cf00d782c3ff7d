"""Check versions of frameworks, import triton first, and recognise out-of-memory errors."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from importlib import import_module


def require(name: str, version: str, floor: str) -> None:
    """Raise ImportError if the installed `version` of framework `name` is older than `floor`.

    >>> require("torch", "2.13.0+cpu", "2.6")
    """
    if is_older(version, floor):
        raise ImportError(f"attzoo needs {name} >= {floor}, got {version}")


def is_older(version: str, floor: str) -> bool:
    """Whether `version` is older than `floor`.

    >>> is_older("3.5.1", "3.6"), is_older("3.10.0", "3.6")
    (True, False)
    """
    numbers, floor_numbers = (tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (version, floor))
    return numbers < floor_numbers


def triton_first() -> None:
    """Import triton, if it is installed and TensorFlow is not loaded yet.

    TensorFlow 2.20 and 2.21 abort the process when triton is loaded after them (tensorflow#124205). Call this before
    anything that may import TensorFlow.
    """
    if "tensorflow" not in sys.modules:
        with suppress(ImportError):
            import_module("triton")


def is_out_of_memory(err: Exception) -> bool:
    """Whether NumPy, torch, TensorFlow or JAX raised `err` because the machine or a device has no memory left."""
    kinds, words = ("OutOfMemoryError", "ResourceExhaustedError"), ("DefaultCPUAllocator", "RESOURCE_EXHAUSTED")
    return isinstance(err, MemoryError) or type(err).__name__ in kinds or any(word in str(err) for word in words)
