"""Published variants of triplet attention."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "paper": Variant(
        "Misra et al., WACV 2021, arXiv:2010.03045v2: three maps, 7 x 7, batch norm",
        {"kernel_size": 7, "no_spatial": False},
    ),
    "official": Variant(
        "landskape-ai/triplet-attention@2cf02fb, triplet_attention.py;"
        " there the momentum of batch norm is 0.01 (0.1 here) and the maximum comes first (swap the kernels' planes)",
        {"kernel_size": 7, "no_spatial": False},
    ),
    "no-spatial": Variant(
        "landskape-ai/triplet-attention@2cf02fb, triplet_attention.py, no_spatial=True: the mean of two maps",
        {"kernel_size": 7, "no_spatial": True},
    ),
}
