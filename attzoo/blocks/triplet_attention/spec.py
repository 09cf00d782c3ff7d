"""The reference implementation of triplet attention in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Final

from ... import contract
from ...contract import Array, Example, Weight, batch_norm, fan_in_uniform
from ...ops import numpy as ops
from ..spec import BlockSpec, Combination

CHOICES: Final = {"kernel_size": (7, 1, 3), "no_spatial": (False, True), "spatial_dims": (2, 1, 3)}
EXAMPLES: Final = {
    "": Example({"channels": 8, "kernel_size": 3}, ((2, 8, 6, 5),)),
    "1d": Example({"channels": 4, "kernel_size": 3, "no_spatial": True, "spatial_dims": 1}, ((2, 4, 9),)),
}
SPACE: Final = {1: "w", 2: "hw", 3: "dhw"}   # spatial axes -> their letters


@dataclass(frozen=True)
class TripletAttention(BlockSpec):
    """channels: C >= 1, channels of the input.

    kernel_size: odd k >= 1, in pixels or channels, the same along every axis of a map.
    no_spatial: whether to leave out the map of the spatial axes, for which the mean and maximum are over channels.
    spatial_dims: 1, 2 or 3, spatial axes of the input.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    combination: ClassVar[Combination] = "mean_of_products"
    channels: int
    kernel_size: int = 7
    no_spatial: bool = False
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        contract.set_fields(
            self,
            channels=contract.integer("channels", self.channels),
            kernel_size=contract.odd("kernel_size", self.kernel_size),
            no_spatial=contract.flag("no_spatial", self.no_spatial),
            spatial_dims=contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3)),
        )

    @property
    def maps(self) -> dict[str, int]:
        """Return the axis of (N, C, *S) over which each map is pooled, by name: {"cw": 2, "hc": 3, "hw": 1} in 2-D."""
        space = SPACE[self.spatial_dims]
        maps = {space.replace(letter, "c"): axis for axis, letter in enumerate(space, start=2)}
        return maps if self.no_spatial else maps | {space: 1}

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        kernel = 1, 2, *(self.kernel_size,) * self.spatial_dims
        weights: dict[str, Weight] = {}
        for name in self.maps:
            weights |= fan_in_uniform(f"{name}_conv", kernel, bias=False) | batch_norm(f"{name}_norm", 1)
        return weights

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the convolutions, for x of shape (N, C, *S)."""
        taps = 2 * self.kernel_size**self.spatial_dims
        return sum(prod(x) // x[axis] * taps for axis in self.maps.values())

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> dict[str, Array]:
        """(N, C, *S) -> by name of the map, (N, C, *S) with size 1 along the pooled axis. Return the coefficients."""
        self.check_inputs(x.shape)
        coefficients = {}
        for name, axis in self.maps.items():
            m = ops.mean_and_max(x, axis)                             # (N, 2, *map)
            q = ops.conv_same(m, weights[f"{name}_conv.weight"])      # (N, 1, *map)
            z = ops.batch_norm(q, weights, f"{name}_norm", training)
            coefficients[name] = ops.sigmoid(z).swapaxes(1, axis)
        return coefficients
