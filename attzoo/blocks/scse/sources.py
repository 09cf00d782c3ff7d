"""Names of the weights of scSE in other libraries."""

from __future__ import annotations

from typing import Final

from ...contract import Keys
from ..sources import linear

OFFICIAL: Final = linear(squeeze="cSE.fc1", excite="cSE.fc2", position="sSE.conv")
KEYS: Final = {
    "official": (Keys(OFFICIAL, axes={"position.weight": 2}),),   # linear layers, and a convolution of size 1
    "smp": (Keys(linear(squeeze="cSE.1", excite="cSE.3", position="sSE.0"), axes=2),),
}
