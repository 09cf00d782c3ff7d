"""Published variants of GC. The docstrings of rules are shown on its card.

Where a source would create fewer than two hidden units, there are two here.
"""

from __future__ import annotations

from typing import Final

from ...contract import Variant, make_divisible
from .spec import FEWEST, GC


def nearest_integer_ties_up(spec: GC) -> int:
    """C / reduction rounded to the nearest integer, ties up."""
    return max(FEWEST, make_divisible(spec.channels / spec.ratio, 1, 0.0))


OFFICIAL: Final = "xvjiarui/GCNet@029db54, mmdet/ops/gcb/context_block.py, ContextBlock"
VARIANTS: Final = {
    "paper": Variant(
        "Cao et al., ICCV workshops 2019, arXiv:1904.11492v1",
        {"reduction": 16, "fusion": "add", "epsilon": 1e-5},
    ),
    "official": Variant(
        f"{OFFICIAL} with channel_add, its default; mmcv 2.2.0 alike",
        {"reduction": 16, "fusion": "add", "epsilon": 1e-5},
    ),
    "official-multiply": Variant(
        f"{OFFICIAL} with channel_mul",
        {"reduction": 16, "fusion": "multiply", "epsilon": 1e-5},
    ),
    "official-both": Variant(
        f"{OFFICIAL} with channel_mul and channel_add",
        {"reduction": 16, "fusion": "both", "epsilon": 1e-5},
    ),
    "timm": Variant(
        "timm 1.0.31, timm/layers/global_context.py, GlobalContext, by the name gc: it multiplies",
        {"reduction": 8, "fusion": "multiply", "epsilon": 1e-6},
        {"reduced_channels": nearest_integer_ties_up},
    ),
    "timm-add": Variant(
        "timm 1.0.31, timm/layers/global_context.py, GlobalContext, by the name gca: it adds",
        {"reduction": 8, "fusion": "add", "epsilon": 1e-6},
        {"reduced_channels": nearest_integer_ties_up},
    ),
}
