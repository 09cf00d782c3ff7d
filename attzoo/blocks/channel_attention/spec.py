"""The reference implementation of channel attention in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ...contract import Array, Example
from ...ops import numpy as ops
from ..bottleneck import CHOICES as CHOICES
from ..bottleneck import Bottleneck

EXAMPLES: Final = {
    "": Example({"channels": 8, "reduced_channels": 3, "bias": False, "gate": "hard_sigmoid"}, ((2, 8, 5, 4),)),
}


@dataclass(frozen=True)
class ChannelAttention(Bottleneck):
    __doc__ = Bottleneck.__doc__

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the perceptron on both pools, for x of shape (N, C, *S)."""
        return x[0] * 4 * self.channels * self.width

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, 1..). Return the coefficients."""
        self.check_inputs(x.shape)
        return ops.expand(self.coefficients(ops.avg_pool(x), ops.max_pool(x), weights), x)

    def coefficients(self, avg: Array, maximum: Array, weights: Mapping[str, Array]) -> Array:
        """Return the coefficients (N, C) from average and maximum over space, (N, C) each."""
        z = self.mlp(avg, weights) + self.mlp(maximum, weights)    # (N, C)
        return ops.GATES[self.gate](z)

    def mlp(self, s: Array, weights: Mapping[str, Array]) -> Array:
        """Apply the two-layer perceptron: (N, C) -> (N, C)."""
        h = ops.relu(ops.linear(s, weights, "squeeze"))    # (N, R)
        return ops.linear(h, weights, "excite")
