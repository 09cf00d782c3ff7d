"""Published variants of coordinate attention. The docstrings of rules are shown on its card."""

from __future__ import annotations

from typing import Final

from ...contract import Variant, make_divisible
from .spec import CoordAttention


def nearest_multiple_of_8(spec: CoordAttention) -> int:
    """2/3 of C / reduction rounded to the nearest multiple of 8, at least 8."""
    return make_divisible(spec.channels * (1 / spec.ratio) * (2 / 3), 8, 0.0)


VARIANTS: Final = {
    "official": Variant(
        "houqb/CoordAttention@7619bea, coordatt.py: bias, also before the batch norm",
        {"reduction": 32, "bias": True},
    ),
    "timm": Variant(
        "timm 1.0.31, timm/layers/coord_attn.py, CoordAttn: no bias",
        {"reduction": 16, "bias": False},
        {"reduced_channels": nearest_multiple_of_8},
    ),
}
