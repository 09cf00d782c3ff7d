"""Published variants of CBAM. A width of 0 in the source is 1 here."""

from __future__ import annotations

from typing import Final

from ...contract import Variant
from ..channel_attention.variants import nearest_integer_ties_up

VARIANTS: Final = {
    "paper": Variant(
        "Woo et al., ECCV 2018, arXiv:1807.06521v2, eq. 2 and 3: no bias, mean first, no batch norm",
        {"reduction": 16, "bias": False, "kernel_size": 7, "norm": False},
    ),
    "official": Variant(
        "Jongchan/attention-module@459efad, MODELS/cbam.py: bias, batch norm;"
        " there its momentum is 0.01 (0.1 here) and the maximum comes first (swap the kernel's planes)",
        {"reduction": 16, "bias": True, "kernel_size": 7, "norm": True},
    ),
    "timm": Variant(
        "timm 1.0.31, timm/layers/cbam.py, CbamModule: no bias, mean first, batch norm",
        {"reduction": 16, "bias": False, "kernel_size": 7, "norm": True},
        {"reduced_channels": nearest_integer_ties_up},
    ),
    "luuuyi": Variant(
        "luuuyi/CBAM.PyTorch@1851f2a, model/resnet_cbam.py: no bias, mean first, no batch norm;"
        " its ratio is ignored and always 16",
        {"reduction": 16, "bias": False, "kernel_size": 7, "norm": False},
    ),
    "changzy00": Variant(
        "changzy00/pytorch-attention@2acb51b, attention-mechanisms/cbam.py: no bias, mean first, no batch norm",
        {"reduction": 16, "bias": False, "kernel_size": 7, "norm": False},
    ),
    "kobiso": Variant(
        "kobiso/CBAM-keras@796ae9e, models/attention_module.py: bias, mean first, no batch norm",
        {"reduction": 8, "bias": True, "kernel_size": 7, "norm": False},
    ),
}
