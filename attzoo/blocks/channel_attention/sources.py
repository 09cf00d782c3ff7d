"""Blocks of other libraries that compute channel attention, and the names of their weights."""

from __future__ import annotations

from typing import Final

from ...contract import Source
from ..sources import linear, only_channels, read_perceptron

NAMES: Final = linear(squeeze="fc1", excite="fc2")
SOURCES: Final = {
    "timm": Source("timm", "timm.layers.cbam", "ChannelAttn", "timm", only_channels, NAMES, read=read_perceptron)
}
