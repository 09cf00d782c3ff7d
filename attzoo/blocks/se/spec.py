"""The reference implementation of SE in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ...contract import Array, Example
from ...ops import numpy as ops
from ..bottleneck import CHOICES as CHOICES
from ..bottleneck import Bottleneck

EXAMPLES: Final = {"": Example({"channels": 8, "reduced_channels": 3}, ((2, 8, 6, 5),))}


@dataclass(frozen=True)
class SE(Bottleneck):
    __doc__ = Bottleneck.__doc__

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the two matrices, for x of shape (N, C, *S)."""
        return x[0] * 2 * self.channels * self.width

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, 1..). Return the coefficients."""
        self.check_inputs(x.shape)
        s = ops.avg_pool(x)                                # (N, C)
        h = ops.relu(ops.linear(s, weights, "squeeze"))    # (N, R)
        z = ops.linear(h, weights, "excite")               # (N, C)
        return ops.expand(ops.GATES[self.gate](z), x)
