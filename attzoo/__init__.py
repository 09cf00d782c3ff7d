"""Attention blocks for PyTorch and Keras 3 that compute the same numbers in both.

Importing this package imports no framework. Requesting a block imports the framework of its backend.
"""

from .card import info
from .insert import attach, detach, swap
from .maps import attention_maps
from .portable import convert, export_weights, load, load_weights, save, weights
from .registry import create, get, names
from .settings import kernels

__all__ = ["get", "create", "names", "info", "weights", "load_weights", "export_weights", "convert", "save", "load"]
__all__ += ["attach", "swap", "detach", "attention_maps", "kernels"]
__version__ = "0.1.0"
