"""The definition of scSE with any combination, in NumPy; torch.py and keras.py must agree with this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from attzoo import contract
from attzoo.blocks.spec import COMBINATIONS, BlockSpec
from attzoo.contract import Array, Example, Weight, fan_in_uniform
from attzoo.ops import numpy as ops

COMBINED: Final = ("sum_of_products", *(name for name in COMBINATIONS if name != "sum_of_products"))
CHOICES: Final = {"width": (2, 1, 3), "combination": COMBINED}
EXAMPLES: Final = {"": Example({"channels": 6}, ((2, 6, 6, 5),))}


@dataclass(frozen=True)
class Combined(BlockSpec):
    """channels: C >= 1, channels of the input.

    width: R >= 1, channels between the two linear maps.
    combination: how both arrays are combined with x, one of `attzoo.blocks.spec.COMBINATIONS`.
    Raises TypeError or ValueError when a value is outside these bounds.
    """

    channels: int
    width: int = 2
    combination: str = "sum_of_products"   # type: ignore[misc]

    def __post_init__(self) -> None:
        contract.set_fields(
            self,
            channels=contract.integer("channels", self.channels),
            width=contract.integer("width", self.width),
            combination=contract.choice("combination", self.combination, COMBINED),
        )

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the weights by canonical name."""
        weights = fan_in_uniform("squeeze", (self.width, self.channels), bias=True)
        weights |= fan_in_uniform("excite", (self.channels, self.width), bias=True)
        return weights | fan_in_uniform("score", (1, self.channels), bias=True)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the three linear maps."""
        return x[0] * self.channels * (2 * self.width + prod(x[2:]))

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> dict[str, Array]:
        """(N, C, *S) -> channel (N, C, 1..), position (N, 1, *S)."""
        self.check_inputs(x.shape)
        s = ops.avg_pool(x)                           # (N, C)
        h = ops.relu(ops.linear(s, weights, "squeeze"))
        z = ops.linear(h, weights, "excite")          # (N, C)
        logits = ops.linear(x, weights, "score")           # (N, 1, *S)
        return {"channel": ops.expand(ops.sigmoid(z), x), "position": ops.sigmoid(logits)}
