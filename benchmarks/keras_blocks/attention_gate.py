"""The additive gate in plain Keras."""

from __future__ import annotations

from typing import Any

from ..plain_keras import layers, norm, resample


def attention_gate(spec: Any, x: Any, g: Any) -> Any:
    """The additive gate; a coarser gating signal is brought to x's size after its projection."""
    if spec.align_corners:
        raise ValueError("expected align_corners=False, which is how Keras's layers resample")
    t = layers.Conv2D(spec.width, spec.strides, spec.strides, use_bias=spec.skip_bias, name="skip")(x)
    p = layers.Conv2D(spec.width, 1, name="gating")(g)
    if spec.norm:
        t, p = norm("skip_norm")(t), norm("gating_norm")(p)
    h = layers.Activation("relu")(layers.Add()([t, resample(p, t, spec.interpolation)]))
    q = layers.Conv2D(1, 1, name="psi")(h)
    q = norm("psi_norm")(q) if spec.norm else q
    a = resample(layers.Activation("sigmoid")(q), x, spec.interpolation)
    y = layers.Multiply()([x, a])
    if spec.output_transform:
        y = norm("output_norm")(layers.Conv2D(spec.channels, 1, name="output")(y))
    return y
