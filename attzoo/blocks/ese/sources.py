"""Blocks of other libraries that compute eSE, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...contract import GATES, Keys, Source
from ..sources import linear, only_channels

NAMES: Final = linear(excite="fc")
KEYS: Final = {"timm": (Keys(NAMES, axes=2),), "official": (Keys(NAMES, axes=2),)}


def read(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments of ESE that the shapes of its arrays, by canonical name, determine."""
    return {"channels": shapes["excite.weight"][0], "bias": "excite.bias" in shapes}


SOURCES: Final = {
    "timm": Source(
        "timm", "timm.layers", "EffectiveSEModule", "timm", only_channels, NAMES, read=read,
        choices=tuple({"gate": gate} for gate in GATES[::-1]),
    )
}   # fmt: skip
