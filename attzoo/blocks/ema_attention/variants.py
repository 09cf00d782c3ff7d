"""Published variants of EMA."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "official": Variant("YOLOonMe/EMA-attention-module@afc37ec, EMA_attention_module, EMA: its factor is groups",
                        {"groups": 32}),
}   # fmt: skip
