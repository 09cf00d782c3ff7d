"""Published variants of MLCA."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "official": Variant(
        "wandahangFY/MLCA@afbeb47, MLCA.py",
        {"gamma": 2.0, "b": 1.0, "local_size": 5, "local_weight": 0.5},
    ),
}
