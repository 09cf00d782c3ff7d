"""Names of the weights of LKA and LSKA in other libraries."""

from __future__ import annotations

from typing import Final

from ...contract import Keys
from ..sources import linear

VAN: Final = linear(local="conv0", dilated="conv_spatial", mix="conv1")
LSKA: Final = linear(
    local1="conv0h", local2="conv0v", dilated1="conv_spatial_h", dilated2="conv_spatial_v", mix="conv1"
)
KEYS: Final = {
    "official": (Keys(VAN | LSKA, axes=2),),   # LKA of VAN-Classification; LSKA of the code of its paper
}
