"""SE as it is published: by whom, with which arguments, and how the hidden width is rounded there.

Where a source would build a hidden layer of 0 units, and so a constant gate, the width here is 1.
"""

from __future__ import annotations

from typing import Final

from ...contract import Variant, make_divisible
from .spec import SE


def eights(spec: SE) -> int:
    """C / reduction to the nearest multiple of 8, at least 8 (timm)."""
    return make_divisible(spec.channels / spec.ratio, 8, 0.0)


def mobile(spec: SE) -> int:
    """As `eights`, and one multiple more where that lost over a tenth (MobileNet's rule)."""
    return make_divisible(spec.channels / spec.ratio)


def mobile_floor(spec: SE) -> int:
    """As `mobile`, of C // reduction."""
    return make_divisible(spec.channels // spec.ratio)


def nearest(spec: SE) -> int:
    """C / reduction to the nearest integer, ties to even."""
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
        {"reduced_channels": eights},
    ),
    "torchvision": Variant(
        "torchvision 0.28.0, torchvision/models/mobilenetv3.py: SqueezeExcitation with a hard sigmoid",
        {"reduction": 4, "bias": True, "gate": "hard_sigmoid"},
        {"reduced_channels": mobile_floor},
    ),
    "moskomule": Variant(
        "moskomule/senet.pytorch@9d279ec, senet/se_module.py: no bias",
        {"reduction": 16, "bias": False},
    ),
    "mmpretrain": Variant(
        "open-mmlab/mmpretrain@02d7d8c, mmcls/models/utils/se_layer.py",
        {"reduction": 16, "bias": True},
        {"reduced_channels": mobile_floor},
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
        {"reduced_channels": mobile},
    ),
    "kimm": Variant(
        "james77777778/keras-image-models@8c85fb3, kimm/_src/blocks/squeeze_and_excitation.py",
        {"reduction": 4, "bias": True},
        {"reduced_channels": nearest},
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
