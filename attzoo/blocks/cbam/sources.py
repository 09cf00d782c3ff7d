"""Blocks of other libraries that compute CBAM, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...contract import Keys, Source, without_prefix
from ..channel_attention import sources as channel_attention
from ..sources import only_channels, read_kernel, read_perceptron
from ..spatial_attention import sources as spatial_attention


def both(source: str, channel: str, spatial: str) -> Keys:
    """Return the keys of CBAM in a library from those of its parts, the attributes `channel` and `spatial` there."""
    parts = channel_attention.KEYS[source][0], spatial_attention.KEYS[source][0]
    names = {
        f"{own}.{name}": f"{attribute}.{key}"
        for (own, attribute), part in zip({"channel": channel, "spatial": spatial}.items(), parts, strict=True)
        for name, key in part.names.items()
    }
    return Keys(names, parts[0].axes, tuple(f"spatial.{name}" for name in parts[1].max_first))


KEYS: Final = {
    "timm": (both("timm", "channel", "spatial"),),
    "official": (both("official", "ChannelGate", "SpatialGate"),),
}


def read(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments that the shapes of the arrays of both parts determine."""
    return read_perceptron(without_prefix("channel", shapes)) | read_kernel(without_prefix("spatial", shapes))


SOURCES: Final = {
    "timm": Source(
        "timm", "timm.layers.cbam", "CbamModule", "timm", only_channels, KEYS["timm"][0].names,
        in_resnets=True, read=read,
    )
}   # fmt: skip
