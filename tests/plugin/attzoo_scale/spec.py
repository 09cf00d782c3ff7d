"""The definition of Scale in NumPy; torch.py and keras.py must agree with this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from attzoo import contract
from attzoo.blocks.spec import BlockSpec
from attzoo.contract import Array, Example, Weight
from attzoo.ops import numpy as ops

CHOICES: Final = {"start": (0.0, 1.0, -2.5)}
EXAMPLES: Final = {"": Example({"channels": 8, "start": 1.0}, ((2, 8, 6, 5),))}


@dataclass(frozen=True)
class Scale(BlockSpec):
    """channels: C >= 1, channels of the input.

    start: initial value of every logit.
    Raises TypeError or ValueError when a value is outside these bounds.
    """

    channels: int
    start: float = 0.0

    def __post_init__(self) -> None:
        channels = contract.integer("channels", self.channels)
        contract.set_fields(self, channels=channels, start=contract.number("start", self.start))

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the weights by canonical name."""
        return {"logit": Weight((self.channels,), "constant", center=self.start)}

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the product."""
        return prod(x)

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (1, C, 1..)."""
        self.check_inputs(x.shape)
        return ops.expand(ops.sigmoid(weights["logit"])[None], x)
