"""Attention gates of other libraries whose weights can be converted."""

from __future__ import annotations

from typing import Any, Final

from ...contract import Source
from ..sources import linear, norm


def monai_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments that MONAI's AttentionLayer passes: the gate has C // 2 inner channels."""
    dims = {"spatial_dims": spec.spatial_dims}
    return dims | {"f_l": spec.channels, "f_g": spec.gating_channels, "f_int": spec.channels // 2}


SOURCES: Final = {
    "monai": Source(
        "MONAI",
        "monai.networks.nets.attentionunet",
        "AttentionBlock",
        "monai",
        monai_arguments,
        linear(skip="W_x.0.conv", gating="W_g.0.conv", psi="psi.0.conv")
        | norm(skip_norm="W_x.1", gating_norm="W_g.1", psi_norm="psi.1"),
        inputs=("g", "x"),
        resize=True,
        ranks=(1, 2, 3),
    ),
}
