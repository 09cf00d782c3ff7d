"""CBAM's channel attention in plain Keras."""

from __future__ import annotations

from typing import Any

from ..plain_keras import layers, per_channel


def channel_attention(spec: Any, x: Any, prefix: str = "") -> Any:
    """Return the output of channel attention for images x. The names of its layers begin with `prefix`."""
    squeeze = layers.Dense(spec.width, activation="relu", use_bias=spec.bias, name=f"{prefix}squeeze")
    excite = layers.Dense(spec.channels, use_bias=spec.bias, name=f"{prefix}excite")
    pools = layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)
    s = layers.Add()([excite(squeeze(s)) for s in pools])
    return layers.Multiply()([x, per_channel(layers.Activation(spec.gate)(s))])
