"""The operations of ops/numpy.py in Keras 3, with layers and initializers for blocks. Tensors are (N, *S, C).

Blocks import `keras` only from here, because triton must be loaded first.
"""

from typing import Any

from ..moved import moved
from .activations.keras import *
from .channels.keras import *
from .common.keras import *
from .convolution.keras import *
from .norms.keras import *
from .pooling.keras import *
from .resizing.keras import *
from .weights.keras import *


def __getattr__(name: str) -> Any:
    """Return the object with an earlier name, with a warning."""
    return moved(__name__, name, {"Block": "attzoo.blocks.keras.Block", "start": "attzoo.ops.keras.initialize"})
