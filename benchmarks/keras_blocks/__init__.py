"""The blocks in Keras's own layers, each in a file with the block's name.

Each function has the block's spec and symbolic input images in Keras's current data format, and returns the symbolic
output.
"""

from importlib.util import find_spec


def has(block: str) -> bool:
    """Whether a block is implemented here. Does not import it."""
    return find_spec(f"{__name__}.{block}") is not None
