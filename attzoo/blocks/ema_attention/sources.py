"""The names of the weights of EMA in its official code."""

from __future__ import annotations

from typing import Final

from ...contract import Keys
from ..sources import linear

NAMES: Final = linear(pointwise="conv1x1", norm="gn", conv="conv3x3")
KEYS: Final = {"official": (Keys(NAMES, axes=2),)}
