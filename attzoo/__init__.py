"""attzoo: plug-in attention blocks, one meaning, several frameworks.

Importing this package imports no framework; asking for a block does.
"""

from .registry import create, get, names

__all__ = ["create", "get", "names"]
__version__ = "0.1.0"
