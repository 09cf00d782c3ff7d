"""Blocks of other libraries that compute CBAM, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...contract import Keys, Source, Unsupported, without_prefix
from ..channel_attention import sources as channel_attention
from ..sources import only_channels, read_kernel, read_perceptron
from ..spatial_attention import sources as spatial_attention


def keys_of_parts(source: str, channel: str, spatial: str) -> Keys:
    """Return the keys of CBAM's weights in library `source`, from the keys of channel and spatial attention there.

    channel, spatial: names of the attributes that hold the two parts in the library's block.
    """
    parts = channel_attention.KEYS[source][0], spatial_attention.KEYS[source][0]
    names = {
        f"{path}.{name}": f"{attribute}.{key}"
        for (path, attribute), part in zip({"channel": channel, "spatial": spatial}.items(), parts, strict=True)
        for name, key in part.names.items()
    }
    return Keys(names, parts[0].axes, max_first=tuple(f"spatial.{name}" for name in parts[1].max_first))


KEYS: Final = {
    "timm": (keys_of_parts("timm", "channel", "spatial"),),
    "official": (keys_of_parts("official", "ChannelGate", "SpatialGate"),),
}


def read(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments of CBAM that the shapes of its arrays, by canonical name, determine."""
    return read_perceptron(without_prefix("channel", shapes)) | read_kernel(without_prefix("spatial", shapes))


UNSUPPORTED: Final = (
    Unsupported(
        "timm",
        "LightCbamModule",
        "applies its perceptron and its convolution to 0.5 * mean + 0.5 * max, one array instead of two",
        {"channel.fc1.weight": (), "spatial.conv.conv.weight": (1, 1, None, None)},
    ),
    Unsupported(
        "ultralytics",
        "CBAM",
        "computes the channel coefficients from averages alone, by one layer of C x C: it is not the CBAM of the paper",
        {"channel_attention.fc.weight": (), "spatial_attention.cv1.weight": ()},
    ),
    Unsupported(
        "xmu",
        "CBAMBlock",
        "has a bias in its spatial convolution, and adds its input to the output",
        {"ca.se.0.weight": (), "sa.conv.weight": (), "sa.conv.bias": ()},
    ),
)
SOURCES: Final = {
    "timm": Source(
        "timm", "timm.layers.cbam", "CbamModule", "timm", only_channels, KEYS["timm"][0].names,
        in_resnets=True, read=read,
    )
}   # fmt: skip
