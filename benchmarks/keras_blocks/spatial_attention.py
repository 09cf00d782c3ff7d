"""CBAM's spatial attention in plain Keras."""

from __future__ import annotations

from typing import Any

from attzoo.ops.keras import keras

from ..plain_keras import axis, layers, norm


def spatial_attention(spec: Any, x: Any, prefix: str = "") -> Any:
    """Return the output of spatial attention for images x. The names of its layers begin with `prefix`."""
    pools = keras.ops.mean(x, axis=axis(), keepdims=True), keras.ops.max(x, axis=axis(), keepdims=True)
    s = layers.Concatenate(axis=axis())(pools)
    s = layers.Conv2D(1, spec.kernel_size, padding="same", use_bias=False, name=f"{prefix}conv")(s)
    s = norm(f"{prefix}norm")(s) if spec.norm else s
    return layers.Multiply()([x, layers.Activation("sigmoid")(s)])
