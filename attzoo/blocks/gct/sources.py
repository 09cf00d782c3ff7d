"""The names of GCT's weights in other libraries."""

from __future__ import annotations

from typing import Final

from ...contract import Keys

NAMES: Final = {"embedding_weight": "alpha", "gating_weight": "gamma", "gating_bias": "beta"}
KEYS: Final = {"official": (Keys(NAMES, vectors=dict.fromkeys(NAMES, (1, 2))),)}   # (1, C, 1, 1)
