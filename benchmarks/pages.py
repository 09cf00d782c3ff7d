"""Freed memory stays with the process: glibc is told so, or page faults would drown the rest: half of JAX's time."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

# What malloc.h calls it -> its number there, and bytes.
ASKED: Final = {
    "MMAP_THRESHOLD": (-3, 1 << 30),   # smaller pieces come from the heap, which keeps what is freed
    "TRIM_THRESHOLD": (-1, (1 << 31) - 1),
    "TOP_PAD": (-2, 64 << 20),
}
# For a process that has yet to begin, as variables of its environment; its threads share one heap.
KEPT_PAGES: Final = {"MALLOC_ARENA_MAX": "1"} | {f"MALLOC_{name}_": str(size) for name, (_, size) in ASKED.items()}


def keep_pages() -> bool:
    """Ask it of this process; False where there is no glibc, or it refuses."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        done = [mallopt(number, size) for number, size in ASKED.values()]   # all of them, also after a refusal
        return all(done)
    return False
