"""Blocks of other libraries that compute ECA, and the names of their weights."""

from __future__ import annotations

from typing import Final

from ...contract import Source
from ..sources import only_channels

NAMES: Final = {"conv.weight": "conv.weight"}
SOURCES: Final = {
    "timm": Source("timm", "timm.layers", "EcaModule", "timm", only_channels, NAMES, in_resnets=True),
    "timm_circular": Source("timm", "timm.layers", "CecaModule", "circular", only_channels, NAMES),
}
