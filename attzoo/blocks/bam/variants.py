"""Published variants of BAM. A width of 0 in the source is 1 here."""

from __future__ import annotations

from typing import Final

from ...contract import Variant
from .spec import COMBINATIONS

PRODUCT, SUM = COMBINATIONS
VARIANTS: Final = {
    "official": Variant(
        "Jongchan/attention-module@459efad, MODELS/bam.py: the product, a batch norm after each hidden layer; its class"
        " raises NameError when it is created",
        {"reduction": 16, "dilation": 4, "combination": PRODUCT, "norm": True, "norm_after": "hidden"},
    ),
    "paper": Variant(
        "Park et al., BMVC 2018, arXiv:1807.06514v2: the sum, a batch norm at the end of each branch",
        {"reduction": 16, "dilation": 4, "combination": SUM, "norm": True, "norm_after": "output"},
    ),
}
