"""Classes of residual blocks and skip connections in known torch networks.

A class is recognised by the package and name of the class or a base class, so that no library is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Residual:
    """A class of residual blocks.

    Args:
        ends: attributes that may be the last module of the residual branch; the first that is a module is used.
        flag: an attribute that is False if a block has no shortcut; blocks without the attribute, or with flag "", have
            one.
    """

    ends: tuple[str, ...]
    flag: str = ""


# torchvision 0.28: models/{resnet,mobilenetv2,mobilenetv3,efficientnet,convnext}.py
# conv2, conv3: models/video/resnet.py; layers: models/maxvit.py
# timm 1.0.31: models/{resnet,resnetv2,_efficientnet_blocks,convnext}.py. ResNets apply `se` and `drop_path` after the
# norm. se_module: models/senet.py
RESIDUAL: Final = {
    ("torchvision", "BasicBlock"): Residual(("bn2", "conv2")),
    ("torchvision", "Bottleneck"): Residual(("bn3", "conv3")),
    ("torchvision", "InvertedResidual"): Residual(("block", "conv"), "use_res_connect"),
    ("torchvision", "MBConv"): Residual(("block", "layers"), "use_res_connect"),
    ("torchvision", "FusedMBConv"): Residual(("block",), "use_res_connect"),
    ("torchvision", "CNBlock"): Residual(("block",)),
    ("timm", "BasicBlock"): Residual(("drop_path", "se", "bn2")),
    ("timm", "Bottleneck"): Residual(("drop_path", "se_module", "se", "bn3")),
    ("timm", "SEResNetBlock"): Residual(("se_module",)),
    ("timm", "PreActBasic"): Residual(("drop_path",)),
    ("timm", "PreActBottleneck"): Residual(("drop_path",)),
    ("timm", "ConvBnAct"): Residual(("drop_path",), "has_skip"),
    ("timm", "DepthwiseSeparableConv"): Residual(("drop_path",), "has_skip"),
    ("timm", "InvertedResidual"): Residual(("drop_path",), "has_skip"),
    ("timm", "UniversalInvertedResidual"): Residual(("drop_path",), "has_skip"),
    ("timm", "EdgeResidual"): Residual(("drop_path",), "has_skip"),
    ("timm", "ConvNeXtBlock"): Residual(("drop_path",)),
}
SKIP: Final = ("monai", "SkipConnection")   # MONAI 1.6.1, monai/networks/layers/simplelayers.py


def residual_of(module: Any) -> Residual | None:
    """Return the entry of RESIDUAL for a residual block with a shortcut; None for any other module."""
    for package, name in classes(module):
        family = RESIDUAL.get((package, name))
        if family is not None:
            return family if getattr(module, family.flag, True) else None
    return None


def is_skip(module: Any) -> bool:
    """Whether a module is a skip connection that concatenates its input and the output of its submodule."""
    return SKIP in classes(module) and str(getattr(module.mode, "value", module.mode)) == "cat" and module.dim == 1


def classes(module: Any) -> list[tuple[str, str]]:
    """Return (package, name) of a module's class and of its base classes."""
    return [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(module).__mro__]
