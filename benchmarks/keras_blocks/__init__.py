"""The blocks in plain Keras, in a file with the block's name each."""

from importlib.util import find_spec


def has(block: str) -> bool:
    """Whether a block is implemented here. Does not import it."""
    return find_spec(f"{__name__}.{block}") is not None
