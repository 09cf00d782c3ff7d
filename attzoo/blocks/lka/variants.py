"""Published variants of LKA."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "official": Variant(
        "Visual-Attention-Network/VAN-Classification@e19779b, models/van.py, LKA",
        {"kernel_size": 21, "separable": False},
    ),
    **{
        f"lska-{size}": Variant(
            "StevenLauHKHK/Large-Separable-Kernel-Attention@bb2a8d2, models/van.py, LSKA",
            {"kernel_size": size, "separable": True},
        )
        for size in (7, 11, 23, 35, 41, 53)
    },
}
