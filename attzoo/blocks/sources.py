"""Tables that the blocks' `sources.py` are built from: names of weights in PyTorch libraries, and common arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

NORM: Final = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def linear(**layers: str) -> dict[str, str]:
    """Names of weights and biases of linear maps and convolutions, from the layers' names: ours -> theirs.

    >>> linear(squeeze="fc1")
    {'squeeze.weight': 'fc1.weight', 'squeeze.bias': 'fc1.bias'}
    """
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in layers.items() for kind in ("weight", "bias")}


def norm(**layers: str) -> dict[str, str]:
    """Names of the four arrays of batch norms, from the layers' names: ours -> theirs.

    >>> norm(norm="bn")["norm.mean"]
    'bn.running_mean'
    """
    return {f"{ours}.{k}": f"{theirs}.{name}" for ours, theirs in layers.items() for k, name in NORM.items()}


def prefixed(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """Names of the arrays of a part that both sides call `prefix`, from those within the part.

    >>> prefixed("channel", {"conv.weight": "conv1.weight"})
    {'channel.conv.weight': 'channel.conv1.weight'}
    """
    return {f"{prefix}.{ours}": f"{prefix}.{theirs}" for ours, theirs in names.items()}


def only_channels(spec: Any) -> dict[str, Any]:
    """Arguments of a class that takes the channels, and whose defaults are the variant's other arguments."""
    return {"channels": spec.channels}
