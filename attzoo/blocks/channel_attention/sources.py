"""Blocks of other libraries that compute channel attention, and the names of their weights."""

from __future__ import annotations

from typing import Final

from ...contract import Keys, Source, Unsupported
from ..sources import linear, only_channels, read_perceptron

NAMES: Final = linear(squeeze="fc1", excite="fc2")
KEYS: Final = {
    "timm": (Keys(NAMES, axes=2),),
    "official": (Keys(linear(squeeze="mlp.1", excite="mlp.3")),),   # ChannelGate of Jongchan/attention-module
}
UNSUPPORTED: Final = (
    Unsupported(
        "ultralytics",
        "ChannelAttention",
        "computes the coefficients from averages alone, by one layer of C x C",
        {"fc.weight": (None, None, 1, 1)},
    ),
)
SOURCES: Final = {
    "timm": Source("timm", "timm.layers.cbam", "ChannelAttn", "timm", only_channels, NAMES, read=read_perceptron)
}
