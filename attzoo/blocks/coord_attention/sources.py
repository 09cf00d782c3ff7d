"""Blocks of other libraries that compute coordinate attention, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...contract import GATES, Keys, Source
from ..sources import linear, norm, only_channels

NAMES: Final = linear(squeeze="conv1", height="conv_h", width="conv_w") | norm(squeeze_norm="bn1")
KEYS: Final = {"official": (Keys(NAMES, axes=2),), "timm": (Keys(NAMES, axes=2),)}


def read(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments of coordinate attention that the shapes of its arrays, by canonical name, determine."""
    width, channels = shapes["squeeze.weight"][:2]
    return {"channels": channels, "reduced_channels": width, "bias": "squeeze.bias" in shapes}


SOURCES: Final = {
    "timm": Source(
        "timm", "timm.layers.coord_attn", "CoordAttn", "timm", only_channels, NAMES,
        read=read, choices=tuple({"gate": gate} for gate in GATES),
    )
}   # fmt: skip
