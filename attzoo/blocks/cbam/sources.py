"""Blocks of other libraries that compute CBAM, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...contract import Source, without_prefix
from ..channel_attention import sources as channel_attention
from ..sources import only_channels, prefixed, read_kernel, read_perceptron
from ..spatial_attention import sources as spatial_attention

NAMES: Final = prefixed("channel", channel_attention.NAMES) | prefixed("spatial", spatial_attention.NAMES)


def read(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments that the shapes of the arrays of both parts determine."""
    return read_perceptron(without_prefix("channel", shapes)) | read_kernel(without_prefix("spatial", shapes))


SOURCES: Final = {
    "timm": Source("timm", "timm.layers.cbam", "CbamModule", "timm", only_channels, NAMES, in_resnets=True, read=read)
}
