"""Descriptions of the arrays of a block: shapes and initialization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

from ..moved import warn_deprecated

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Weight:
    """Shape and initialization of one array of a block.

    Attributes:
        shape: canonical shape.
        initialization: "uniform" on [center - scale, center + scale), "normal" with mean `center` and standard
            deviation `scale`, "constant" with value `center`, or "orthogonal": `scale` times a matrix of shape
            (shape[0], product of the other sizes) with orthonormal rows or columns.
        scale: see `initialization`.
        center: see `initialization`.
        trainable: whether training changes the array by gradients.

    """

    shape: tuple[int, ...]
    initialization: Literal["uniform", "normal", "constant", "orthogonal"]
    scale: float = 0.0
    center: float = 0.0
    trainable: bool = True

    @property
    def start(self) -> str:
        """Deprecated name of `initialization`. Reading it warns with DeprecationWarning."""
        warn_deprecated("Weight.start", "Weight.initialization")
        return self.initialization

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def fan_in_uniform(name: str, shape: tuple[int, ...], *, bias: bool) -> dict[str, Weight]:
    """Return the descriptions of "name.weight" and, with `bias`, "name.bias" of a linear map or convolution.

    Both are uniform on +-fan_in^-1/2, as in torch.nn.Linear and ConvNd. `shape` is the shape of the weight, which
    begins with the number of outputs.
    """
    bound = prod(shape[1:]) ** -0.5
    weights = {f"{name}.weight": Weight(shape, "uniform", bound)}
    return weights | ({f"{name}.bias": Weight(shape[:1], "uniform", bound)} if bias else {})


def kaiming_normal(name: str, shape: tuple[int, ...], *, bias: bool) -> dict[str, Weight]:
    """Return `fan_in_uniform` with the weight from normal(0, (2 / fan_in)^1/2) instead (He et al. 2015, eq. 10)."""
    weights = fan_in_uniform(name, shape, bias=bias)
    return weights | {f"{name}.weight": Weight(shape, "normal", (2 / prod(shape[1:])) ** 0.5)}


def batch_norm(name: str, channels: int, scale: float = 0.0) -> dict[str, Weight]:
    """Return the descriptions of a batch norm's arrays: "name.weight", "name.bias", "name.mean" and "name.var".

    The weight is from normal(1, scale); `scale` is 0 for all ones. The last two are the running statistics.
    """
    return {
        f"{name}.weight": Weight((channels,), "normal", scale, 1.0) if scale else Weight((channels,), "constant", 0, 1),
        f"{name}.bias": Weight((channels,), "constant"),
        f"{name}.mean": Weight((channels,), "constant", trainable=False),
        f"{name}.var": Weight((channels,), "constant", center=1.0, trainable=False),
    }


def layer_norm(name: str, channels: int) -> dict[str, Weight]:
    """Return the descriptions of a layer norm's arrays: "name.weight", initially 1, and "name.bias", initially 0."""
    return {
        f"{name}.weight": Weight((channels,), "constant", center=1.0),
        f"{name}.bias": Weight((channels,), "constant"),
    }


group_norm = layer_norm   # the arrays of a group norm have the same names, shapes and initial values


def prefixed(prefix: str, entries: Mapping[str, T]) -> dict[str, T]:
    """Return entries with a prefix and a dot before each name: "conv.weight" -> "prefix.conv.weight"."""
    return {f"{prefix}.{name}": entry for name, entry in entries.items()}


def without_prefix(prefix: str, entries: Mapping[str, T]) -> dict[str, T]:
    """Return the entries whose names have the prefix, without it: "prefix.conv.weight" -> "conv.weight"."""
    return {name.removeprefix(f"{prefix}."): array for name, array in entries.items() if name.startswith(f"{prefix}.")}
