"""Attention gates of other libraries whose weights can be converted."""

from __future__ import annotations

from typing import Any, Final

from ...contract import Keys, Source
from ..sources import keras_layers, linear, norm

NORMS: Final = norm(skip_norm="W_x.1", gating_norm="W_g.1", psi_norm="psi.1")
KEYS: Final = {
    "monai": (Keys(linear(skip="W_x.0.conv", gating="W_g.0.conv", psi="psi.0.conv") | NORMS, axes=None),),
    "leejunhyun": (Keys(linear(skip="W_x.0", gating="W_g.0", psi="psi.0") | NORMS, axes=None),),
    "official": (   # _GridAttentionBlockND of ozan-oktay/Attention-Gated-Networks
        Keys(
            linear(skip="theta", gating="phi", psi="psi", output="W.0") | norm(output_norm="W.1"),
            axes=None,
        ),
    ),
    "keras-unet-collection": (   # its attention_gate with attention="add"
        Keys(keras_layers(skip="theta_x", gating="phi_g", psi="psi_f"), axes=None, channels_last=True),
    ),
}


def monai_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of MONAI's AttentionLayer for a block's spec: the gate has C // 2 inner channels."""
    dims = {"spatial_dims": spec.spatial_dims}
    return dims | {"f_l": spec.channels, "f_g": spec.gating_channels, "f_int": spec.channels // 2}


SOURCES: Final = {
    "monai": Source(
        "MONAI",
        "monai.networks.nets.attentionunet",
        "AttentionBlock",
        "monai",
        monai_arguments,
        KEYS["monai"][0].names,
        inputs=("g", "x"),
        resize=True,
        ranks=(1, 2, 3),
    ),
}
