"""Published variants of SE. The docstrings of rules are shown on its card.

Where a source would create a hidden layer of 0 units, the width is 1 here.
"""

from __future__ import annotations

from typing import Final

from ...contract import Variant, make_divisible
from .spec import SE


def nearest_multiple_of_8(spec: SE) -> int:
    """C / reduction rounded to the nearest multiple of 8, at least 8."""
    return make_divisible(spec.channels / spec.ratio, 8, 0.0)


def mobilenet_rounding(spec: SE) -> int:
    """C / reduction rounded to the nearest multiple of 8, and up if this is less than 90 % of it (MobileNet)."""
    return make_divisible(spec.channels / spec.ratio)


def mobilenet_rounding_of_floor(spec: SE) -> int:
    """C // reduction rounded to the nearest multiple of 8, and up if this is less than 90 % of it (MobileNet)."""
    return make_divisible(spec.channels // spec.ratio)


def nearest_integer(spec: SE) -> int:
    """C / reduction rounded to the nearest integer, ties to even."""
    return max(1, round(spec.channels / spec.ratio))


VARIANTS: Final = {
    "paper": Variant(
        "Hu et al., CVPR 2018, arXiv:1709.01507v4, eq. 3: no bias",
        {"reduction": 16, "bias": False},
    ),
    "official": Variant(
        "hujie-frank/SENet@0262d43, models/SE-ResNet-50.prototxt: bias, as in the released weights",
        {"reduction": 16, "bias": True},
    ),
    "timm": Variant(
        "timm 1.0.31, timm/layers/squeeze_excite.py, SEModule",
        {"reduction": 16, "bias": True},
        {"reduced_channels": nearest_multiple_of_8},
    ),
    "torchvision": Variant(
        "torchvision 0.28.0, torchvision/models/mobilenetv3.py: SqueezeExcitation with a hard sigmoid",
        {"reduction": 4, "bias": True, "gate": "hard_sigmoid"},
        {"reduced_channels": mobilenet_rounding_of_floor},
    ),
    "torchvision-efficientnet": Variant(
        "torchvision 0.28.0, torchvision/models/efficientnet.py, MBConv: a quarter of its input's channels, which it"
        " expands by 6, with SiLU; keras.applications alike",
        {"reduction": 24, "bias": True, "act": "silu"},
    ),
    "torchvision-regnet": Variant(
        "torchvision 0.28.0, torchvision/models/regnet.py, BottleneckTransform, where input and output are as wide",
        {"reduction": 4, "bias": True},
        {"reduced_channels": nearest_integer},
    ),
    "timm-efficientnet": Variant(
        "timm 1.0.31, timm/models/_efficientnet_blocks.py, SqueezeExcite: a quarter of the block's input channels,"
        " which it expands by 6, with SiLU",
        {"reduction": 24, "bias": True, "act": "silu"},
        {"reduced_channels": nearest_integer},
    ),
    "timm-mobilenet": Variant(
        "timm 1.0.31, timm/models/mobilenetv3.py: SqueezeExcite with a hard sigmoid; keras.applications alike",
        {"reduction": 4, "bias": True, "gate": "hard_sigmoid"},
        {"reduced_channels": mobilenet_rounding},
    ),
    "moskomule": Variant(
        "moskomule/senet.pytorch@9d279ec, senet/se_module.py: no bias",
        {"reduction": 16, "bias": False},
    ),
    "mmpretrain": Variant(
        "open-mmlab/mmpretrain@02d7d8c, mmcls/models/utils/se_layer.py",
        {"reduction": 16, "bias": True},
        {"reduced_channels": mobilenet_rounding_of_floor},
    ),
    "monai": Variant(
        "MONAI 1.6.1, monai/networks/blocks/squeeze_and_excitation.py, ChannelSELayer",
        {"reduction": 2, "bias": True},
    ),
    "ai-med": Variant(
        "ai-med/squeeze_and_excitation@acdd26e, squeeze_and_excitation/squeeze_and_excitation.py, ChannelSELayer",
        {"reduction": 2, "bias": True},
    ),
    "fvcore": Variant(
        "facebookresearch/fvcore@242366f, fvcore/nn/squeeze_excitation.py, SqueezeExcitation",
        {"reduction": 2, "bias": True},
    ),
    "kecam": Variant(
        "leondgarse/keras_cv_attention_models@6975b9e, keras_cv_attention_models/common_layers.py, se_module",
        {"reduction": 4, "bias": True},
        {"reduced_channels": mobilenet_rounding},
    ),
    "kimm": Variant(
        "james77777778/keras-image-models@8c85fb3, kimm/_src/blocks/squeeze_and_excitation.py",
        {"reduction": 4, "bias": True},
        {"reduced_channels": nearest_integer},
    ),
    "kobiso": Variant(
        "kobiso/CBAM-keras@796ae9e, models/attention_module.py, se_block",
        {"reduction": 8, "bias": True},
    ),
    "titu1994": Variant(
        "titu1994/keras-squeeze-excite-network@0088710, keras_squeeze_excite_network/se.py: no bias",
        {"reduction": 16, "bias": False},
    ),
}
