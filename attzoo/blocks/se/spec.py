"""The reference implementation of SE in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ... import contract
from ...contract import ACTIVATIONS, Array, Example
from ...ops import numpy as ops
from .. import bottleneck
from ..bottleneck import Bottleneck

CHOICES: Final = bottleneck.CHOICES | {"act": ACTIVATIONS}
EXAMPLES: Final = {
    "": Example({"channels": 8, "reduced_channels": 3}, ((2, 8, 6, 5),)),
    "silu": Example({"channels": 8, "reduced_channels": 3, "act": "silu"}, ((2, 8, 6, 5),)),
}


@dataclass(frozen=True)
class SE(Bottleneck):
    __doc__ = f"""{(Bottleneck.__doc__ or "").rpartition("    Raises")[0].rstrip()}
    act: "relu", "silu" or "hard_swish", applied to the hidden units.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    act: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        contract.set_fields(self, act=contract.choice("act", self.act, ACTIVATIONS))

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the two matrices, for x of shape (N, C, *S)."""
        return x[0] * 2 * self.channels * self.width

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, 1..). Return the coefficients."""
        self.check_inputs(x.shape)
        s = ops.avg_pool(x)                                # (N, C)
        hidden = ops.linear(s, weights, "squeeze")              # (N, R)
        h = ops.activate(hidden, self.act)                      # (N, R)
        z = ops.linear(h, weights, "excite")               # (N, C)
        return ops.expand(ops.GATES[self.gate](z), x)
