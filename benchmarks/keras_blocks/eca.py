"""Efficient channel attention (ECA) in plain Keras."""

from __future__ import annotations

from typing import Any

from ..plain_keras import layers, per_channel


def eca(spec: Any, x: Any) -> Any:
    """Return the output of ECA with the arguments of `spec` for images x."""
    if spec.padding != "zeros":
        raise ValueError(f"expected padding='zeros', the only one of Keras's layers, got {spec.padding!r}")
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Reshape((spec.channels, 1))(s)
    s = layers.Conv1D(1, spec.k, padding="same", use_bias=False, data_format="channels_last", name="conv")(s)
    s = layers.Activation("sigmoid")(layers.Flatten()(s))
    return layers.Multiply()([x, per_channel(s)])
