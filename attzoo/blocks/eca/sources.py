"""Blocks of other libraries that compute ECA, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...contract import Keys, Source, Unsupported
from ..sources import only_channels


def read(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the argument kernel_size of ECA, from the shapes of its arrays by canonical name.

    The number of channels does not follow from the shape of the kernel.
    """
    return {"kernel_size": shapes["conv.weight"][-1]}


NAMES: Final = {"conv.weight": "conv.weight"}
KEYS: Final = dict.fromkeys(("timm", "official"), (Keys(NAMES, vectors={"conv.weight": (2, 0)}),))   # (1, 1, k)
UNSUPPORTED: Final = (
    Unsupported(
        "timm",
        "EcaModule with use_mlp=True",
        "has a second convolution, and a bias in the first: create it without this argument",
        {"conv.weight": (), "conv2.weight": ()},
    ),
    Unsupported(
        "xmu",
        "ECAAttention",
        "has a bias in its convolution, which ECA does not have: remove the bias if it is 0",
        {"conv.weight": (), "conv.bias": (1,)},
    ),
)
SOURCES: Final = {
    "timm": Source("timm", "timm.layers", "EcaModule", "timm", only_channels, NAMES, in_resnets=True, read=read),
    "timm_circular": Source(
        "timm", "timm.layers", "CecaModule", "circular", only_channels, NAMES, read=read,
        choices=({"padding": "circular"},),
    ),
}   # fmt: skip
