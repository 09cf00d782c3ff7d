"""Names of the weights of MLCA in other libraries."""

from __future__ import annotations

from typing import Final

from ...contract import Keys

KEYS: Final = {"official": (Keys({"conv.weight": "conv.weight", "local_conv.weight": "conv_local.weight"}),)}
