"""The additive attention gate in plain Keras."""

from __future__ import annotations

from typing import Any

from ..plain_keras import layers, norm, resample


def attention_gate(spec: Any, x: Any, g: Any) -> Any:
    """Return the output of the additive gate for images x and a gating signal g, which may be coarser.

    A coarser g is upsampled after its projection.
    """
    if spec.align_corners:
        raise ValueError("expected align_corners=False, the only way in which Keras's layers upsample, got True")
    skip = layers.Conv2D(spec.width, spec.strides, spec.strides, use_bias=spec.skip_bias, name="skip")(x)
    gating = layers.Conv2D(spec.width, 1, name="gating")(g)
    if spec.norm:
        skip, gating = norm("skip_norm")(skip), norm("gating_norm")(gating)
    hidden = layers.Activation("relu")(layers.Add()([skip, resample(gating, skip, spec.interpolation)]))
    logits = layers.Conv2D(1, 1, name="psi")(hidden)
    logits = norm("psi_norm")(logits) if spec.norm else logits
    coefficients = resample(layers.Activation("sigmoid")(logits), x, spec.interpolation)
    y = layers.Multiply()([x, coefficients])
    if spec.output_transform:
        y = norm("output_norm")(layers.Conv2D(spec.channels, 1, name="output")(y))
    return y
