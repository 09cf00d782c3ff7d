"""Published variants of GCT."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "official": Variant(
        "z-x-yang/GCT@68983ed, PyTorch/GCT.py, mode l2, its default",
        {"mode": "l2", "epsilon": 1e-5},
    ),
    "official-l1": Variant(
        "z-x-yang/GCT@68983ed, PyTorch/GCT.py, mode l1",
        {"mode": "l1", "epsilon": 1e-5},
    ),
}
