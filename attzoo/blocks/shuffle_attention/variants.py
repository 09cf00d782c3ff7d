"""Published variants of shuffle attention."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "official": Variant("wofmanaf/SA-Net@00a6760, models/sa_resnet.py, sa_layer", {"groups": 64}),
}
