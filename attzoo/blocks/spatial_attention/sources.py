"""Spatial attention in other libraries."""

from __future__ import annotations

from typing import Any, Final

from ...contract import Source
from ..sources import norm, read_kernel

NAMES: Final = {"conv.weight": "conv.conv.weight"} | norm(norm="conv.bn")


def timm_arguments(spec: Any) -> dict[str, Any]:
    """No arguments: timm's class works for any number of channels."""
    return {}


SOURCES: Final = {
    "timm": Source("timm", "timm.layers.cbam", "SpatialAttn", "timm", timm_arguments, NAMES, read=read_kernel)
}
