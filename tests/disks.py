"""Disks that are full, for tests."""

import resource
from contextlib import contextmanager


@contextmanager
def full(most):
    """Inside, the system lets no file grow beyond so many bytes."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
