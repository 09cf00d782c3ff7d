"""Published variants of spatial attention."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "paper": Variant(
        "Woo et al., ECCV 2018, arXiv:1807.06521v2, eq. 3: mean first, no batch norm",
        {"kernel_size": 7, "norm": False},
    ),
    "official": Variant(
        "Jongchan/attention-module@459efad, MODELS/cbam.py, SpatialGate: batch norm;"
        " there its momentum is 0.01 (0.1 here) and the maximum comes first (swap the kernel's planes)",
        {"kernel_size": 7, "norm": True},
    ),
    "timm": Variant(
        "timm 1.0.31, timm/layers/cbam.py, SpatialAttn: mean first, batch norm",
        {"kernel_size": 7, "norm": True},
    ),
    "luuuyi": Variant(
        "luuuyi/CBAM.PyTorch@1851f2a, model/resnet_cbam.py: mean first, no batch norm",
        {"kernel_size": 7, "norm": False},
    ),
    "kobiso": Variant(
        "kobiso/CBAM-keras@796ae9e, models/attention_module.py, spatial_attention: mean first, no batch norm",
        {"kernel_size": 7, "norm": False},
    ),
}
