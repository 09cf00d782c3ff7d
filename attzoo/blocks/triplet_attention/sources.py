"""Names of the weights of triplet attention in other libraries."""

from __future__ import annotations

from typing import Final

from ...contract import Keys
from ..sources import norm

MAPS: Final = ("cw", "hc", "hw")
CONVS: Final = {f"{name}_conv.weight": f"{name}.conv.conv.weight" for name in MAPS}
NORMS: Final = norm(**{f"{name}_norm": f"{name}.conv.bn" for name in MAPS})
KEYS: Final = {"official": (Keys(CONVS | NORMS, max_first=tuple(CONVS)),)}
