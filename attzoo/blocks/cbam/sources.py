"""Blocks of other libraries that compute CBAM, and the names of their weights."""

from __future__ import annotations

from typing import Final

from ...contract import Source
from ..channel_attention import sources as channel_attention
from ..sources import only_channels, prefixed
from ..spatial_attention import sources as spatial_attention

NAMES: Final = prefixed("channel", channel_attention.NAMES) | prefixed("spatial", spatial_attention.NAMES)
SOURCES: Final = {
    "timm": Source("timm", "timm.layers.cbam", "CbamModule", "timm", only_channels, NAMES, in_resnets=True)
}
