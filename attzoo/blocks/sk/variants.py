"""Published variants of SK. The docstrings of rules are shown on its card."""

from __future__ import annotations

from typing import Final

from ...contract import Variant, make_divisible
from .spec import SK


def mobilenet_rounding(spec: SK) -> int:
    """C / reduction rounded to the nearest multiple of 8, and up if this is less than 90 % of it (MobileNet)."""
    return make_divisible(spec.channels / spec.ratio)


PAPER: Final = {"reduction": 16, "kernel_sizes": (3, 5), "dilated": True, "split": False}
VARIANTS: Final = {
    "paper": Variant("Li et al., CVPR 2019, arXiv:1903.06586v2, with M = 2, G = 32, r = 16, L = 32", PAPER),
    "official": Variant("implus/SKNet@17dd708, models/sknet50.prototxt, in Caffe", PAPER),
    "timm": Variant(
        "timm 1.0.31, timm/layers/selective_kernel.py, SelectiveKernel: each path gets its part of the channels, no"
        " groups; its ResNeXt passes split_input=False and 32 groups",
        PAPER | {"groups": 1, "split": True},
        {"reduced_channels": mobilenet_rounding},
    ),
}
