"""Blocks of other libraries that compute SK, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...contract import Keys, Source
from ..sources import norm

MAX_PATHS: Final = 8   # largest number of paths of a block whose weights can be converted


def path_keys(i: int) -> dict[str, str]:
    """Return the keys of timm's path i, from 0 on, by canonical name."""
    canonical = f"path{i + 1}"
    return {f"{canonical}.weight": f"paths.{i}.conv.weight"} | norm(**{f"{canonical}_norm": f"paths.{i}.bn"})


ATTENTION: Final = {"reduce.weight": "attn.fc_reduce.weight", "select.weight": "attn.fc_select.weight"}
KEYS: Final = {
    "timm": (
        Keys(
            {name: key for i in range(MAX_PATHS) for name, key in path_keys(i).items()}
            | ATTENTION | norm(reduce_norm="attn.bn"),
            axes=2,
        ),
    ),
}   # fmt: skip


def timm_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of timm's class."""
    return {"in_channels": spec.channels}


def read(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments of SK that the shapes of its arrays, by canonical name, determine."""
    width, channels = shapes["reduce.weight"][:2]
    return {"channels": channels, "reduced_channels": width}


SOURCES: Final = {
    "timm": Source(
        "timm", "timm.layers", "SelectiveKernel", "timm", timm_arguments, KEYS["timm"][0].names, read=read,
        choices=({"split": True, "groups": 1}, {"split": False, "groups": 32}, {"split": False, "groups": 1}),
    ),
}   # fmt: skip
