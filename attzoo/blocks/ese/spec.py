"""The reference implementation of eSE in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ... import contract
from ...contract import GATES, Array, Example, Weight, fan_in_uniform
from ...ops import numpy as ops
from ..spec import BlockSpec

CHOICES: Final = {"bias": (True, False), "gate": GATES[::-1]}
EXAMPLES: Final = {"": Example({"channels": 8}, ((2, 8, 6, 5),))}


@dataclass(frozen=True)
class ESE(BlockSpec):
    """channels: C >= 1, channels of the input.

    bias: whether the linear map has a bias.
    gate: "hard_sigmoid" or "sigmoid", applied to the output of the linear map; the result is the coefficients.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    bias: bool = True
    gate: str = "hard_sigmoid"

    def __post_init__(self) -> None:
        contract.set_fields(
            self,
            channels=contract.integer("channels", self.channels),
            bias=contract.flag("bias", self.bias),
            gate=contract.choice("gate", self.gate, GATES),
        )

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        return fan_in_uniform("excite", (self.channels, self.channels), bias=self.bias)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the matrix, for x of shape (N, C, *S)."""
        return x[0] * self.channels**2

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, 1..). Return the coefficients."""
        self.check_inputs(x.shape)
        s = ops.avg_pool(x)                       # (N, C)
        z = ops.linear(s, weights, "excite")      # (N, C)
        return ops.expand(ops.GATES[self.gate](z), x)
