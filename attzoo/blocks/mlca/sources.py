"""Names of the weights of MLCA in other libraries."""

from __future__ import annotations

from typing import Final

from ...contract import Keys

NAMES: Final = {"conv.weight": "conv.weight", "local_conv.weight": "conv_local.weight"}
KEYS: Final = {"official": (Keys(NAMES, vectors=dict.fromkeys(NAMES, (2, 0))),)}   # (1, 1, k)
