"""Published variants of the attention U-Net. The docstrings of rules are shown on its card."""

from __future__ import annotations

from typing import Any, Final

from ..contract import Variant
from .spec import UNet


def paper_gates(net: UNet) -> list[dict[str, Any]]:
    """The paper's gates: as many inner channels as the skip, coefficients at the size of g, an output transform."""
    if net.skip != "attention_gate":
        return []
    paper_options = {"skip_bias": False, "output_transform": True}
    pairs = zip(net.channels, net.steps, strict=False)
    return gated(net, [paper_options | {"inter_channels": c, "stride": list(step)} for c, step in pairs])


def quarter_width_gates(net: UNet) -> list[dict[str, Any]]:
    """Gates with a quarter of the channels of their gating signal."""
    if net.skip != "attention_gate":
        return []
    return gated(net, [{"inter_channels": max(1, c // 4)} for c in net.channels[1:]])


def gated(net: UNet, options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the options of every level, with {} for levels whose skip has no gate."""
    levels_without_gate = len(options) - net.gates
    return [{}] * levels_without_gate + options[levels_without_gate:]


def all_but_finest(net: UNet) -> int:
    """The number of skips except the finest."""
    return 0 if net.skip is None else max(1, len(net.channels) - 2)


def batch_norm_gates(net: UNet) -> dict[str, Any]:
    """Gates with batch norm."""
    return {"norm": True} if net.skip == "attention_gate" else {}


LEEJUNHYUN: Final = {
    "channels": (64, 128, 256, 512, 1024),
    "norm": "batch",
    "down": "max_pool",
    "up": "nearest",
    "up_conv": True,
    "skip": "attention_gate",
    "gating": "up",
    "concat": "skip_first",
    "initializer": "normal",
}
GATES: Final = {"skip_options": batch_norm_gates}
VARIANTS: Final = {
    "oktay": Variant(
        "ozan-oktay/Attention-Gated-Networks@eee4881, models/networks/unet_CT_single_att_dsv_3D.py, the paper's code;"
        " spatial_dims=2 gives its 2-D form. Its PyTorch version interpolated with aligned corners",
        {
            "channels": (16, 32, 64, 128, 256),
            "norm": "batch",
            "down": "max_pool",
            "up": "linear",
            "up_conv": False,
            "skip": "attention_gate",
            "gating": "grid",
            "combine": True,
            "concat": "skip_first",
            "deep_supervision": True,
            "initializer": "kaiming",
            "spatial_dims": 3,
        },
        {"gated": all_but_finest, "skip_options": paper_gates},   # in this order: skip_options depends on gated
    ),
    "leejunhyun": Variant("LeeJunHyun/Image_Segmentation@7a6e5f9, network.py, AttU_Net", LEEJUNHYUN, GATES),
    "leejunhyun-transpose": Variant(
        "the same with a transposed convolution, 4x4 and stride 2, instead of nearest upsampling, as in its forks",
        LEEJUNHYUN | {"up": "transpose", "up_kernel_size": 4},
        GATES,
    ),
    "monai": Variant(
        "MONAI 1.6.1, monai/networks/nets/attentionunet.py, AttentionUnet; its dropout p is dropout=(p, p) here",
        {
            "norm": "batch",
            "down": "conv",
            "up": "transpose",
            "up_kernel_size": 3,
            "up_conv": False,
            "skip": "attention_gate",
            "gating": "up",
            "concat": "skip_first",
            "decoder": "merge",
            "initializer": "torch",
        },
        GATES,
    ),
    "keras": Variant(
        "lixiaolei1982/Keras-Implementation-of-U-Net-R2U-Net-Attention-U-Net-Attention-R2U-Net.-@9e5d6ac, network.py,"
        " att_unet; it begins with 32 channels, as in ports of this code, which begins with 64",
        {
            "channels": (32, 64, 128, 256, 512),
            "norm": None,
            "dropout": 0.2,
            "down": "max_pool",
            "up": "nearest",
            "up_conv": False,
            "skip": "attention_gate",
            "gating": "up",
            "concat": "up_first",
            "head": "sigmoid",
            "initializer": "glorot",
        },
        {"skip_options": quarter_width_gates},
    ),
}
