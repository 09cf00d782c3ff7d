"""Published variants of the attention gate. The inner width is at least 1, also where a source computes 0."""

from __future__ import annotations

from typing import Final

from ...contract import Variant
from .spec import AttentionGate

PLAIN: Final = {"stride": 1, "skip_bias": True, "norm": False, "output_transform": False}   # three 1x1 convolutions
NORMED: Final = PLAIN | {"norm": True}                                                      # each with batch norm


def half(spec: AttentionGate) -> int:
    """C // 2."""
    return max(1, spec.channels // 2)


def quarter(spec: AttentionGate) -> int:
    """G // 4."""
    return max(1, spec.gating_channels // 4)


VARIANTS: Final = {
    "oktay": Variant(
        "ozan-oktay/Attention-Gated-Networks@eee4881, models/layers/grid_attention_layer.py: coarse g;"
        " its networks pass inter_channels=channels, and its PyTorch aligned corners",
        {"stride": 2, "skip_bias": False, "norm": False, "output_transform": True, "interpolation": "linear"},
        {"inter_channels": half},
    ),
    "leejunhyun": Variant(
        "LeeJunHyun/Image_Segmentation@7a6e5f9, network.py, Attention_block: g is upsampled before the gate",
        NORMED,
        {"inter_channels": half},
    ),
    "monai": Variant(
        "MONAI 1.6.1, monai/networks/nets/attentionunet.py, AttentionBlock: g is upsampled before the gate",
        NORMED,
        {"inter_channels": half},
    ),
    "keras": Variant(
        "as yingkaisha/keras-unet-collection@1c24b7a, keras_unet_collection/layer_utils.py, attention_gate, with a"
        " width chosen by the caller: here a quarter of g, as in Keras ports of 32 to 512 channels",
        PLAIN,
        {"inter_channels": quarter},
    ),
    "kuc": Variant(
        "yingkaisha/keras-unet-collection@1c24b7a, keras_unet_collection/layer_utils.py, attention_gate",
        PLAIN,
        {"inter_channels": half},
    ),
}
