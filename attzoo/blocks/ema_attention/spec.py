"""The reference implementation of EMA in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from ... import contract
from ...contract import Array, Example, Weight, fan_in_uniform, group_norm
from ...ops import numpy as ops
from ..spec import BlockSpec

CHOICES: Final = {"groups": (2, 4, 1), "spatial_dims": (2, 1, 3)}
EXAMPLES: Final = {
    "": Example({"channels": 6, "groups": 2}, ((2, 6, 4, 5),)),
}


@dataclass(frozen=True)
class EMAAttention(BlockSpec):
    """channels: C, channels of the input, a multiple of groups.

    groups: G >= 1, groups of consecutive channels.
    spatial_dims: 1, 2 or 3, spatial axes of the input.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    groups: int = 32
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        channels, groups = contract.integer("channels", self.channels), contract.integer("groups", self.groups)
        contract.check_groups(channels, groups)
        dims = contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3))
        contract.set_fields(self, channels=channels, groups=groups, spatial_dims=dims)

    @property
    def width(self) -> int:
        """Return D, the number of channels of a group."""
        return self.channels // self.groups

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        d = self.width
        weights = fan_in_uniform("pointwise", (d, d), bias=True) | group_norm("norm", d)
        return weights | fan_in_uniform("conv", (d, d, *(3,) * self.spatial_dims), bias=True)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the convolutions and the weighted sums, for x of shape (N, C, *S)."""
        kernel_size = int(3**self.spatial_dims)
        convolutions = self.width * (sum(x[2:]) + kernel_size * prod(x[2:]))
        return x[0] * self.channels * (convolutions + 2 * prod(x[2:]))

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the coefficients, which are equal in all channels of a group."""
        self.check_inputs(x.shape)
        g = ops.fold_groups(x, self.groups)                                           # (N G, D, *S)
        p = ops.split_axes(ops.linear(ops.axis_means(g), weights, "pointwise"), g)    # (N G, D, 1.., S[i], 1..)
        u = g
        for i in range(self.spatial_dims):
            u = u * ops.sigmoid(p[i])
        u = ops.group_norm(u, weights, "norm", self.width)                            # (N G, D, *S)
        v = ops.conv(g, weights, "conv", (1,) * self.spatial_dims)                    # (N G, D, *S)
        q = ops.weighted_sum(v, ops.channel_softmax(ops.avg_pool(u)))                 # (N G, 1, *S)
        q = q + ops.weighted_sum(u, ops.channel_softmax(ops.avg_pool(v)))
        return ops.repeat_channels(ops.unfold_groups(ops.sigmoid(q), self.groups), self.width)
