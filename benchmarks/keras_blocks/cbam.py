"""CBAM in plain Keras."""

from __future__ import annotations

from typing import Any

from .channel_attention import channel_attention
from .spatial_attention import spatial_attention


def cbam(spec: Any, x: Any) -> Any:
    """Return the output of CBAM with the arguments of `spec` for images x."""
    return spatial_attention(spec.spatial, channel_attention(spec.channel, x, "channel_"), "spatial_")
