"""Blocks of other libraries that compute spatial attention, and the names of their weights."""

from __future__ import annotations

from typing import Any, Final

from ...contract import Keys, Source, Unsupported
from ..sources import norm, read_kernel

NAMES: Final = {"conv.weight": "conv.conv.weight"} | norm(norm="conv.bn")
KEYS: Final = {
    "timm": (Keys(NAMES),),
    "official": (   # SpatialGate of Jongchan/attention-module
        Keys({"conv.weight": "spatial.conv.weight"} | norm(norm="spatial.bn"), max_first=("conv.weight",)),
    ),
}

UNSUPPORTED: Final = (
    Unsupported(
        "timm",
        "LightSpatialAttn",
        "convolves 0.5 * mean + 0.5 * max, one plane instead of two",
        {"conv.conv.weight": (1, 1, None, None)},
    ),
    Unsupported(
        "xmu",
        "SpatialAttention",
        "has a bias in its convolution",
        {"conv.weight": (1, 2, None, None), "conv.bias": (1,)},
    ),
)


def timm_arguments(spec: Any) -> dict[str, Any]:
    """Return no arguments, because timm's class accepts any number of channels."""
    return {}


SOURCES: Final = {
    "timm": Source("timm", "timm.layers.cbam", "SpatialAttn", "timm", timm_arguments, NAMES, read=read_kernel)
}
