"""The definition of GC in NumPy; torch.py and keras.py must agree with this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Final

from attzoo import contract
from attzoo.blocks.spec import BlockSpec, Combination
from attzoo.contract import Array, Example, Weight, fan_in_uniform, layer_norm
from attzoo.ops import numpy as ops

CHOICES: Final = {"width": (3, 4)}
EXAMPLES: Final = {"": Example({"channels": 6}, ((2, 6, 6, 5),))}


@dataclass(frozen=True)
class GC(BlockSpec):
    """channels: C >= 1, channels of the input.

    width: R >= 1, channels between the two linear maps.
    Raises TypeError or ValueError when a value is outside these bounds.
    """

    combination: ClassVar[Combination] = "add"
    channels: int
    width: int = 3

    def __post_init__(self) -> None:
        channels = contract.integer("channels", self.channels)
        contract.set_fields(self, channels=channels, width=contract.integer("width", self.width))

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the weights by canonical name."""
        weights = fan_in_uniform("score", (1, self.channels), bias=True)
        weights |= fan_in_uniform("squeeze", (self.width, self.channels), bias=True) | layer_norm("norm", self.width)
        return weights | fan_in_uniform("excite", (self.channels, self.width), bias=True)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the three linear maps."""
        return x[0] * self.channels * (2 * self.width + prod(x[2:]))

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, 1..)."""
        self.check_inputs(x.shape)
        probabilities = ops.position_softmax(ops.linear(x, weights, "score"))    # (N, 1, *S)
        s = ops.weighted_pool(x, probabilities)                                  # (N, C)
        h = ops.layer_norm(ops.linear(s, weights, "squeeze"), weights, "norm")
        return ops.expand(ops.linear(ops.relu(h), weights, "excite"), x)
