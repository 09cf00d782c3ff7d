"""Blocks of other libraries that compute GC, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...contract import Keys, Source
from ..sources import linear
from .spec import FUSIONS

TERMS: Final = FUSIONS["both"][0]


def names(score: str, squeeze: str, norm: str, excite: str, **terms: str) -> dict[str, str]:
    """Return the keys in a library by canonical name. All arguments are names of layers in the library.

    Args:
        score: the layer `score`.
        squeeze: the first linear map of a transform.
        norm: the layer norm of a transform.
        excite: the second linear map of a transform.
        **terms: the transforms, by the canonical names "scale" and "shift".

    """
    layers = {"squeeze": squeeze, "norm": norm, "excite": excite}
    paths = {f"{term}_{name}": f"{path}.{layer}" for term, path in terms.items() for name, layer in layers.items()}
    return linear(score=score, **paths)


OFFICIAL: Final = Keys(
    names("conv_mask", "0", "1", "3", scale="channel_mul_conv", shift="channel_add_conv"),
    axes=2,
    vectors={f"{term}_norm.{leaf}": (0, 2) for term in TERMS for leaf in ("weight", "bias")},   # (R, 1, 1)
)
TIMM: Final = Keys(names("conv_attn", "fc1", "norm", "fc2", scale="mlp_scale", shift="mlp_add"), axes=2)
KEYS: Final = {"official": (OFFICIAL,), "mmcv": (OFFICIAL,), "timm": (TIMM,)}


def read(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments of GC that the shapes of its arrays by canonical name determine; {} without a transform."""
    terms = tuple(term for term in TERMS if f"{term}_squeeze.weight" in shapes)
    if not terms:
        return {}
    width, channels = shapes[f"{terms[0]}_squeeze.weight"][:2]
    fusion = next(fusion for fusion, (fusion_terms, _) in FUSIONS.items() if fusion_terms == terms)
    return {"channels": channels, "reduced_channels": width, "fusion": fusion}


def timm_arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of timm's class."""
    fuses = {"fuse_scale": "scale" in spec.terms, "fuse_add": "shift" in spec.terms}
    return {"channels": spec.channels, "rd_channels": spec.width} | fuses


SOURCES: Final = {
    variant: Source(
        "timm", "timm.layers.global_context", "GlobalContext", variant, timm_arguments, TIMM.names, read=read,
        choices=({"epsilon": 1e-6},),
    )
    for variant in ("timm", "timm-add")
}   # fmt: skip
