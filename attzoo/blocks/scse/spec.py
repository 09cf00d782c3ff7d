"""The reference implementation of scSE in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Final

from ... import contract
from ...contract import Array, Example, Weight, fan_in_uniform
from ...ops import numpy as ops
from .. import bottleneck
from ..bottleneck import Bottleneck

COMBINATIONS: Final = ("max_of_products", "sum_of_products")
CHOICES: Final = bottleneck.CHOICES | {"combination": COMBINATIONS}
EXAMPLES: Final = {"": Example({"channels": 8, "reduced_channels": 3}, ((2, 8, 6, 5),))}


@dataclass(frozen=True)
class SCSE(Bottleneck):
    """channels: C >= 1, channels of the input.

    reduction: >= 1, dimensionless; the hidden layer has max(1, C // reduction) units; None means 2.
    reduced_channels: R >= 1, hidden units; None means the number of the rule above. Give only one of the two.
    bias: whether the three linear maps have a bias.
    gate: "sigmoid" or "hard_sigmoid", applied to the outputs of both linear maps to coefficients.
    combination: "max_of_products", the larger of x * channel and x * position, or "sum_of_products", their sum.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    default_reduction: ClassVar[int] = 2
    combination: str = "max_of_products"   # type: ignore[assignment, misc]   # a field here

    def __post_init__(self) -> None:
        super().__post_init__()
        contract.set_fields(self, combination=contract.choice("combination", self.combination, COMBINATIONS))

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        return super().weights | fan_in_uniform("position", (1, self.channels), bias=self.bias)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the three linear maps, for x of shape (N, C, *S)."""
        return x[0] * self.channels * (2 * self.width + prod(x[2:]))

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> dict[str, Array]:
        """(N, C, *S) -> channel (N, C, 1..), position (N, 1, *S). Return the coefficients."""
        self.check_inputs(x.shape)
        gate = ops.GATES[self.gate]
        s = ops.avg_pool(x)                                    # (N, C)
        h = ops.relu(ops.linear(s, weights, "squeeze"))        # (N, R)
        z = ops.linear(h, weights, "excite")                   # (N, C)
        q = ops.linear(x, weights, "position")                 # (N, 1, *S)
        return {"channel": ops.expand(gate(z), x), "position": gate(q)}
