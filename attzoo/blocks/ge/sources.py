"""Blocks of other libraries that compute GE, and the names of their weights."""

from __future__ import annotations

from typing import Any, Final

from ...contract import Keys, Source
from ..sources import linear, norm
from .spec import EXTENTS

STEPS: Final = range(1, EXTENTS[-1].bit_length())
NAMES: Final = (
    {f"conv{i}.weight": f"gather.conv{i}.weight" for i in STEPS}
    | norm(**{f"norm{i}": f"gather.norm{i}" for i in STEPS})
    | linear(squeeze="mlp.fc1", excite="mlp.fc2")
)
KEYS: Final = {"timm": (Keys(NAMES, axes={"squeeze.weight": 2, "excite.weight": 2}),)}


def timm_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of timm's class."""
    return {
        "channels": spec.channels,
        "extent": spec.extent,
        "extra_params": spec.learned,
        "use_mlp": spec.mlp,
        "rd_channels": spec.reduced_channels,
    }


SOURCES: Final = {
    "timm": Source(
        "timm", "timm.layers.gather_excite", "GatherExcite", "theta-minus-8", timm_arguments, NAMES,
        choices=tuple({"extent": extent, "learned": False, "mlp": False} for extent in EXTENTS),
    )
}   # fmt: skip
