"""The reference implementation of spatial attention in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from ... import contract
from ...contract import Array, Example, Weight, batch_norm, fan_in_uniform
from ...ops import numpy as ops
from ..spec import BlockSpec

CHOICES: Final = {"kernel_size": (7, 1, 3), "norm": (False, True), "spatial_dims": (2, 1, 3)}
EXAMPLES: Final = {
    "": Example({"channels": 3, "kernel_size": 3, "norm": True}, ((2, 3, 4, 7),)),
    "1d": Example({"channels": 3, "spatial_dims": 1}, ((2, 3, 9),)),
}


@dataclass(frozen=True)
class SpatialAttention(BlockSpec):
    """channels: C >= 1, channels of the input.

    kernel_size: odd k >= 1, in pixels, the same along every spatial axis.
    norm: whether batch norm follows the convolution.
    spatial_dims: 1, 2 or 3, spatial axes of the input.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    kernel_size: int = 7
    norm: bool = False
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        contract.set_fields(
            self,
            channels=contract.integer("channels", self.channels),
            kernel_size=contract.odd("kernel_size", self.kernel_size),
            norm=contract.flag("norm", self.norm),
            spatial_dims=contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3)),
        )

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        kernel = fan_in_uniform("conv", (1, 2, *(self.kernel_size,) * self.spatial_dims), bias=False)
        return kernel | (batch_norm("norm", 1) if self.norm else {})

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the convolution, for x of shape (N, C, *S)."""
        return x[0] * prod(x[2:]) * self.weights["conv.weight"].size

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, 1, *S). Return the coefficients."""
        self.check_inputs(x.shape)
        return self.coefficients(ops.mean_and_max(x, 1), weights, training)

    def coefficients(self, maps: Array, weights: Mapping[str, Array], training: bool = False) -> Array:
        """Return the coefficients (N, 1, *S) from average and maximum over channels, (N, 2, *S)."""
        logits = ops.conv_same(maps, weights["conv.weight"])    # (N, 1, *S)
        return ops.sigmoid(ops.batch_norm(logits, weights, "norm", training))
