"""The files tests/blocks/test_NAME.py, by block. A block without its file turns a test of test_variants.py red."""

from importlib import import_module
from importlib.util import find_spec

from attzoo import registry

FILES = {name: import_module(f"blocks.test_{name}") for name in registry.BLOCKS if find_spec(f"blocks.test_{name}")}


def table(name):
    """What the files state in their tables of this name: (block, key of the row) -> row."""
    tables = {block: getattr(file, name, {}) for block, file in FILES.items()}
    return {(block, key): row for block, rows in tables.items() for key, row in rows.items()}
