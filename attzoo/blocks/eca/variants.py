"""Published variants of ECA."""

from __future__ import annotations

from typing import Final

from ...contract import Variant
from .spec import ECA


def kernel_size_of_at_least_3(spec: ECA) -> int:
    """The paper's kernel size, but at least 3, which differs below 8 channels."""
    return max(3, spec.k)


VARIANTS: Final = {
    "paper": Variant(
        "Wang et al., CVPR 2020, arXiv:1910.03151v4, eq. 12 and fig. 3",
        {"gamma": 2.0, "b": 1.0, "padding": "zeros"},
    ),
    "official": Variant(
        "BangguWu/ECANet@b332f6b, models/eca_module.py: k = 3 (its networks set 3, 5 or 7 per stage)",
        {"kernel_size": 3, "padding": "zeros"},
    ),
    "timm": Variant(
        "timm 1.0.31, timm/layers/eca.py, EcaModule",
        {"gamma": 2.0, "b": 1.0, "padding": "zeros"},
        {"kernel_size": kernel_size_of_at_least_3},
    ),
    "circular": Variant(
        "timm 1.0.31, timm/layers/eca.py, CecaModule: the first and last channel are neighbours",
        {"gamma": 2.0, "b": 1.0, "padding": "circular"},
        {"kernel_size": kernel_size_of_at_least_3},
    ),
    "kecam": Variant(
        "leondgarse/keras_cv_attention_models@6975b9e, keras_cv_attention_models/common_layers.py, eca_module",
        {"gamma": 2.0, "b": 1.0, "padding": "zeros"},
        {"kernel_size": kernel_size_of_at_least_3},
    ),
}
