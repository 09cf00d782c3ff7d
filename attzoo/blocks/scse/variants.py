"""Published variants of scSE. A width of 0 in the source is 1 here."""

from __future__ import annotations

from typing import Final

from ...contract import Variant

VARIANTS: Final = {
    "paper": Variant(
        "Roy et al., MICCAI 2018, arXiv:1803.02579v2: the sum, here without biases",
        {"reduction": 2, "bias": False, "combination": "sum_of_products"},
    ),
    "ai-med": Variant(
        "ai-med/squeeze_and_excitation@acdd26e, squeeze_and_excitation/squeeze_and_excitation.py,"
        " ChannelSpatialSELayer: the maximum, as in the later paper, arXiv:1808.08127v1",
        {"reduction": 2, "bias": True, "combination": "max_of_products"},
    ),
    "smp": Variant(
        "qubvel-org/segmentation_models.pytorch@5006616, segmentation_models_pytorch/base/modules.py, SCSEModule:"
        ' the sum; decoder_attention_type="scse" selects it',
        {"reduction": 16, "bias": True, "combination": "sum_of_products"},
    ),
}
