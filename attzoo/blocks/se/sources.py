"""Blocks of other libraries that compute SE, and the names of their weights."""

from __future__ import annotations

from typing import Any, Final

from ...contract import Keys, Source
from ..sources import GATES, linear, only_channels, read_perceptron

NAMES: Final = linear(squeeze="fc1", excite="fc2")
CONV_NAMES: Final = linear(squeeze="conv_reduce", excite="conv_expand")
KEYS: Final = {
    "timm": (   # SEModule, and SqueezeExcite of MobileNets and EfficientNets
        Keys(NAMES, axes=2),
        Keys(CONV_NAMES, axes=2),
    ),
    "torchvision": (Keys(NAMES, axes=2),),
    "monai": (Keys(linear(squeeze="fc.0", excite="fc.2")),),
    "moskomule": (Keys(linear(squeeze="fc.0", excite="fc.2")),),
    "ai-med": (Keys(NAMES),),
    "mmpretrain": (Keys(linear(squeeze="conv1.conv", excite="conv2.conv"), axes=2),),
}
READ: Final[dict[str, Any]] = {"read": read_perceptron, "choices": GATES}


def torchvision_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments that torchvision's MobileNetV3 passes, as the class has no defaults for width and gate."""
    from torch.nn import Hardsigmoid
    from torchvision.models._utils import _make_divisible

    width = _make_divisible(spec.channels // 4, 8)
    return {"input_channels": spec.channels, "squeeze_channels": width, "scale_activation": Hardsigmoid}


def timm_conv_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of timm's SqueezeExcite, which rounds C / 4 to the nearest integer."""
    return {"in_chs": spec.channels}


def monai_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of MONAI's class. Its linear layers do not depend on spatial_dims."""
    return {"spatial_dims": 2, "in_channels": spec.channels}


SOURCES: Final = {
    "timm": Source("timm", "timm.layers", "SEModule", "timm", only_channels, NAMES, in_resnets=True, **READ),
    "torchvision": Source(
        "torchvision", "torchvision.ops.misc", "SqueezeExcitation", "torchvision", torchvision_arguments, NAMES, **READ
    ),
    "monai": Source(
        "MONAI", "monai.networks.blocks", "ChannelSELayer", "monai", monai_arguments,
        KEYS["monai"][0].names, **READ,
    ),
    "timm_conv": Source(
        "timm", "timm.models._efficientnet_blocks", "SqueezeExcite", "kimm", timm_conv_arguments, CONV_NAMES, **READ
    ),
}   # fmt: skip
