"""attzoo: plug-in attention blocks, one meaning, several frameworks.

Importing this package imports no framework; asking for a block does.
"""

from .card import info
from .maps import attention_maps
from .portable import convert, load, load_weights, save, weights
from .registry import create, get, names
from .settings import kernels

__all__ = ["get", "create", "names", "info", "weights", "load_weights", "convert", "save", "load"]
__all__ += ["attention_maps", "kernels"]
__version__ = "0.1.0"
