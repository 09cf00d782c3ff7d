"""Published variants of GE. The docstrings of rules are shown on its card."""

from __future__ import annotations

from typing import Final

from ...contract import Variant, make_divisible
from .spec import GE


def nearest_integer_ties_up(spec: GE) -> int:
    """C / reduction rounded to the nearest integer, ties up."""
    return make_divisible(spec.channels / spec.ratio, 1, 0.0)


PAPER: Final = "Hu et al., NeurIPS 2018, arXiv:1810.12348v3"
VARIANTS: Final = {
    "theta-minus": Variant(
        f"{PAPER}, GE-theta-; hujie-frank/GENet@ae791f8, models/RN50-GEPF.prototxt",
        {"extent": 0, "learned": False, "mlp": False},
    ),
    **{
        f"theta-minus-{extent}": Variant(
            f"{PAPER}, GE-theta- (E{extent})", {"extent": extent, "learned": False, "mlp": False}
        )
        for extent in (2, 4, 8)
    },
    **{
        f"theta-{extent}": Variant(f"{PAPER}, GE-theta (E{extent})", {"extent": extent, "learned": True, "mlp": False})
        for extent in (2, 4, 8)
    },
    "timm": Variant(
        "timm 1.0.31, timm/layers/gather_excite.py, GatherExcite: by default equal to SE",
        {"reduction": 16, "extent": 0, "learned": False, "mlp": True},
        {"reduced_channels": nearest_integer_ties_up},
    ),
}
