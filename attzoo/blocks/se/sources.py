"""Blocks of other libraries that compute SE, and the names of their weights."""

from __future__ import annotations

from typing import Any, Final

from ...contract import ACTIVATIONS, GATES, Keys, Source, Unsupported
from ..sources import keras_layers, linear, only_channels, read_perceptron

NAMES: Final = linear(squeeze="fc1", excite="fc2")
CONV_NAMES: Final = linear(squeeze="conv_reduce", excite="conv_expand")
MODULE: Final = Keys(NAMES, axes=2)               # timm's SEModule, torchvision's SqueezeExcitation
EFFICIENTNET: Final = Keys(CONV_NAMES, axes=2)    # SqueezeExcite of timm's MobileNets and EfficientNets
KERAS_MOBILENET: Final = Keys(   # of keras.applications.MobileNetV3
    keras_layers(squeeze="squeeze_excite_conv", excite="squeeze_excite_conv_1"), axes=2, channels_last=True,
    product="squeeze_excite_mul",
)   # fmt: skip
KERAS_EFFICIENTNET: Final = Keys(   # of keras.applications.EfficientNet and EfficientNetV2
    keras_layers(squeeze="se_reduce", excite="se_expand"), axes=2, channels_last=True, product="se_excite"
)
KEYS: Final = {   # `load_weights` reads every layout of a name, and `export_weights` writes the first
    "timm": (MODULE, EFFICIENTNET),
    "timm-efficientnet": (EFFICIENTNET,),
    "torchvision": (MODULE,),
    "keras": (KERAS_MOBILENET, KERAS_EFFICIENTNET),
    "keras-efficientnet": (KERAS_EFFICIENTNET,),
    "monai": (Keys(linear(squeeze="fc.0", excite="fc.2")),),
    "moskomule": (Keys(linear(squeeze="fc.0", excite="fc.2")),),
    "ai-med": (Keys(NAMES),),
    "mmpretrain": (Keys(linear(squeeze="conv1.conv", excite="conv2.conv"), axes=2),),
}
READ: Final[dict[str, Any]] = {   # fields of `Source` for classes with gate and activation as arguments
    "read": read_perceptron,
    "choices": tuple({"gate": gate, "act": act} for gate in GATES for act in ACTIVATIONS),
}


UNSUPPORTED: Final = (
    Unsupported(
        "timm",
        "SEModule with norm_layer",
        "has a norm between its two layers. For inference, fold it: module.fc1 = "
        "torch.nn.utils.fusion.fuse_conv_bn_eval(module.fc1, module.bn), then module.bn = nn.Identity()",
        {"fc1.weight": (), "bn.weight": (), "fc2.weight": ()},
    ),
)


def torchvision_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of torchvision's class for a block's spec, those that torchvision's MobileNetV3 passes.

    The class has no defaults for width and gate.
    """
    from torch.nn import Hardsigmoid
    from torchvision.models._utils import _make_divisible

    width = _make_divisible(spec.channels // 4, 8)
    return {"input_channels": spec.channels, "squeeze_channels": width, "scale_activation": Hardsigmoid}


def efficientnet_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of timm's class for a block's spec, those that timm's EfficientNets pass."""
    from torch.nn import SiLU

    return {"in_chs": spec.channels, "rd_channels": spec.width, "act_layer": SiLU}


def monai_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of MONAI's class for a block's spec. Its linear layers do not depend on spatial_dims."""
    return {"spatial_dims": 2, "in_channels": spec.channels}


SOURCES: Final = {
    "timm": Source("timm", "timm.layers", "SEModule", "timm", only_channels, NAMES, in_resnets=True, **READ),
    "timm_efficientnet": Source(
        "timm", "timm.models._efficientnet_blocks", "SqueezeExcite", "timm-efficientnet", efficientnet_arguments,
        CONV_NAMES, **READ,
    ),
    "torchvision": Source(
        "torchvision", "torchvision.ops.misc", "SqueezeExcitation", "torchvision", torchvision_arguments, NAMES, **READ
    ),
    "monai": Source(
        "MONAI", "monai.networks.blocks", "ChannelSELayer", "monai", monai_arguments,
        KEYS["monai"][0].names, **READ,
    ),
}   # fmt: skip
