"""The modules tests/blocks/test_NAME.py by block. A test in test_variants.py fails for a block without one."""

from importlib import import_module
from importlib.util import find_spec

from attzoo import registry

FILES = {name: import_module(f"blocks.test_{name}") for name in registry.BLOCKS if find_spec(f"blocks.test_{name}")}


def table(name):
    """Return the rows of the modules' dicts of this name by (block, key)."""
    tables = {block: getattr(module, name, {}) for block, module in FILES.items()}
    return {(block, key): row for block, rows in tables.items() for key, row in rows.items()}
