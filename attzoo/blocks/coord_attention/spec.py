"""The reference implementation of coordinate attention in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from ... import contract
from ...contract import Array, Example, Weight, batch_norm, fan_in_uniform
from ...ops import numpy as ops
from .. import bottleneck
from ..bottleneck import Bottleneck

AXES: Final = ("depth", "height", "width")   # of a volume; an image has the last two, and a sequence the last
CHOICES: Final = bottleneck.CHOICES | {"spatial_dims": (2, 1, 3)}
EXAMPLES: Final = {
    "": Example({"channels": 8, "reduced_channels": 3}, ((2, 8, 4, 5),)),
    "3d": Example(
        {"channels": 4, "reduced_channels": 2, "bias": False, "gate": "hard_sigmoid", "spatial_dims": 3},
        ((2, 4, 3, 2, 4),),
    ),
}


@dataclass(frozen=True)
class CoordAttention(Bottleneck):
    """channels: C >= 1, channels of the input.

    reduction: >= 1, dimensionless; the hidden layer has max(8, C // reduction) channels; None means 32.
    reduced_channels: R >= 1, hidden channels; None means the number of the rule above. Give only one of the two.
    bias: whether the linear maps have a bias.
    gate: "sigmoid" or "hard_sigmoid", which gives the coefficients.
    spatial_dims: 1, 2 or 3, spatial axes of the input.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    default_reduction: ClassVar[int] = 32
    min_width: ClassVar[int] = 8
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        contract.set_fields(self, spatial_dims=contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3)))

    @property
    def axes(self) -> tuple[str, ...]:
        """Return the names of the spatial axes, such as ("height", "width")."""
        return AXES[-self.spatial_dims :]

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        c, r = self.channels, self.width
        weights = fan_in_uniform("squeeze", (r, c), bias=self.bias) | batch_norm("squeeze_norm", r)
        for name in self.axes:
            weights |= fan_in_uniform(name, (c, r), bias=self.bias)
        return weights

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the linear maps, for x of shape (N, C, *S)."""
        return x[0] * 2 * self.channels * self.width * sum(x[2:])

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> dict[str, Array]:
        """(N, C, *S) -> (N, C, 1.., S[i], 1..) for each axis i. Return the coefficients by name of the axis."""
        self.check_inputs(x.shape)
        s = ops.axis_means(x)                                              # (N, C, sum of S)
        u = ops.linear(s, weights, "squeeze")                              # (N, R, sum of S)
        u = ops.batch_norm(u, weights, "squeeze_norm", training)
        z = ops.split_axes(ops.hard_swish(u), x)                           # (N, R, 1.., S[i], 1..)
        return {
            name: ops.GATES[self.gate](ops.linear(z[i], weights, name)) for i, name in enumerate(self.axes)
        }
