"""The reference implementation of SimAM in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ... import contract
from ...contract import Array, Example, Weight
from ...ops import numpy as ops
from ..spec import BlockSpec

CHOICES: Final = {"e_lambda": (1e-4, 0.1), "unbiased": (True, False)}
EXAMPLES: Final = {"": Example({"channels": 8}, ((2, 8, 6, 5),))}


@dataclass(frozen=True)
class SimAM(BlockSpec):
    """channels: C >= 1, channels of the input.

    e_lambda: > 0, in squared units of x, added to the variance of every channel.
    unbiased: whether the variance is the sum of squares divided by the number of pixels minus 1, not by the number.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    e_lambda: float = 1e-4
    unbiased: bool = True

    def __post_init__(self) -> None:
        contract.set_fields(
            self,
            channels=contract.integer("channels", self.channels),
            e_lambda=contract.number("e_lambda", self.e_lambda),
            unbiased=contract.flag("unbiased", self.unbiased),
        )
        if self.e_lambda <= 0:
            raise ValueError(f"e_lambda must be > 0, got {self.e_lambda}")

    @property
    def weights(self) -> dict[str, Weight]:
        """Return no arrays: the block has no weights."""
        return {}

    def macs(self, x: Sequence[int]) -> int:
        """Return 0: the block has no linear maps."""
        return 0

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the coefficients."""
        self.check_inputs(x.shape)
        r = ops.relative_deviation(x, self.e_lambda, self.unbiased)    # (N, C, *S)
        return ops.sigmoid(r / 4 + 0.5)
