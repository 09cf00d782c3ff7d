"""Set glibc to keep freed memory in the process. Otherwise page faults take up to half of JAX's time."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

# Option in malloc.h -> its number and its value in bytes.
OPTIONS: Final = {
    "MMAP_THRESHOLD": (-3, 1 << 30),   # smaller pieces come from the heap, which keeps what is freed
    "TRIM_THRESHOLD": (-1, (1 << 31) - 1),
    "TOP_PAD": (-2, 64 << 20),
}
# The same as environment variables for a new process, with one heap for all threads.
MALLOC_VARIABLES: Final = {
    "MALLOC_ARENA_MAX": "1", **{f"MALLOC_{name}_": str(size) for name, (_, size) in OPTIONS.items()}
}   # fmt: skip


def keep_pages() -> bool:
    """Apply the options to this process. Return False without glibc or if an option is refused."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        results = [mallopt(number, size) for number, size in OPTIONS.values()]   # all, even if one is refused
        return all(results)
    return False
