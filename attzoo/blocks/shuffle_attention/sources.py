"""The names of the weights of shuffle attention in its official code."""

from __future__ import annotations

from typing import Final

from ...contract import Keys

VECTORS: Final = {   # of shape (1, D, 1, 1) in the official code
    "channel_weight": "cweight", "channel_bias": "cbias", "position_weight": "sweight", "position_bias": "sbias",
}   # fmt: skip
NAMES: Final = VECTORS | {"norm.weight": "gn.weight", "norm.bias": "gn.bias"}
KEYS: Final = {"official": (Keys(NAMES, vectors=dict.fromkeys(VECTORS, (1, 2))),)}
