"""Published variants of channel attention. A width of 0 in the source is 1 here."""

from __future__ import annotations

from typing import Final

from ...contract import Variant, make_divisible
from ..bottleneck import Bottleneck


def nearest_integer_ties_up(spec: Bottleneck) -> int:
    """C / reduction rounded to the nearest integer, ties up, at least 1."""
    return make_divisible(spec.channels / spec.ratio, 1, 0.0)


VARIANTS: Final = {
    "paper": Variant(
        "Woo et al., ECCV 2018, arXiv:1807.06521v2, eq. 2: no bias",
        {"reduction": 16, "bias": False},
    ),
    "official": Variant(
        "Jongchan/attention-module@459efad, MODELS/cbam.py, ChannelGate: bias",
        {"reduction": 16, "bias": True},
    ),
    "timm": Variant(
        "timm 1.0.31, timm/layers/cbam.py, ChannelAttn: no bias",
        {"reduction": 16, "bias": False},
        {"reduced_channels": nearest_integer_ties_up},
    ),
    "luuuyi": Variant(
        "luuuyi/CBAM.PyTorch@1851f2a, model/resnet_cbam.py: no bias; its ratio is ignored and always 16",
        {"reduction": 16, "bias": False},
    ),
    "kobiso": Variant(
        "kobiso/CBAM-keras@796ae9e, models/attention_module.py, channel_attention: bias",
        {"reduction": 8, "bias": True},
    ),
}
