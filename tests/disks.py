"""Simulate a full disk in tests."""

import resource
from contextlib import contextmanager


@contextmanager
def file_size_limit(limit):
    """Limit the size of every file to `limit` bytes inside the context; writing more raises OSError."""
    old_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old_limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limits)
