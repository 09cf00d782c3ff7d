"""Squeeze and excitation (SE) in plain Keras."""

from __future__ import annotations

from typing import Any

from ..plain_keras import layers, per_channel


def se(spec: Any, x: Any) -> Any:
    """Return the output of SE with the arguments of `spec` for images x."""
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Dense(spec.width, activation="relu", use_bias=spec.bias, name="squeeze")(s)
    s = layers.Dense(spec.channels, activation=spec.gate, use_bias=spec.bias, name="excite")(s)
    return layers.Multiply()([x, per_channel(s)])
