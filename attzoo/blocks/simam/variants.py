"""Published variants of SimAM."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "paper": Variant(
        "Yang et al., ICML 2021, PMLR 139, whose equations divide by the number of pixels M;"
        " its code ZjjConan/SimAM@ae98f43 divides by M - 1",
        {"e_lambda": 1e-4, "unbiased": False},
    ),
    "official": Variant(
        "ZjjConan/SimAM@ae98f43, networks/attentions/simam_module.py",
        {"e_lambda": 1e-4, "unbiased": True},
    ),
}
