"""Published variants of eSE."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "paper": Variant(
        "Lee, Park, CVPR 2020, arXiv:1911.06667v6: a sigmoid",
        {"bias": True, "gate": "sigmoid"},
    ),
    "official": Variant(
        "youngwanLEE/vovnet-detectron2@b81c813, vovnet/vovnet.py, eSEModule: a hard sigmoid; its reduction is ignored",
        {"bias": True, "gate": "hard_sigmoid"},
    ),
    "timm": Variant(
        "timm 1.0.31, timm/layers/squeeze_excite.py, EffectiveSEModule",
        {"bias": True, "gate": "hard_sigmoid"},
    ),
}
