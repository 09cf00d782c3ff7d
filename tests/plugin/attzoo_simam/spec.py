"""The definition of SimAM in NumPy; torch.py and keras.py must agree with this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from attzoo import contract
from attzoo.blocks.spec import BlockSpec
from attzoo.contract import Array, Example, Weight
from attzoo.ops import numpy as ops

CHOICES: Final = {"smoothing": (0.1, 1.0)}
EXAMPLES: Final = {"": Example({"channels": 6}, ((2, 6, 6, 5),))}


@dataclass(frozen=True)
class SimAM(BlockSpec):
    """channels: C >= 1, channels of the input.

    smoothing: added to the variance of a channel.
    Raises TypeError or ValueError when a value is outside these bounds.
    """

    channels: int
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        channels = contract.integer("channels", self.channels)
        contract.set_fields(self, channels=channels, smoothing=contract.number("smoothing", self.smoothing))

    @property
    def weights(self) -> dict[str, Weight]:
        """Return {}, because the block has no parameters."""
        return {}

    def macs(self, x: Sequence[int]) -> int:
        """Return 0, because there are no linear maps."""
        return 0

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S)."""
        self.check_inputs(x.shape)
        squared_deviations = (x - ops.expand(ops.avg_pool(x), x)) ** 2
        variance = ops.expand(ops.avg_pool(squared_deviations), x)
        return ops.sigmoid(squared_deviations / (4 * (variance + self.smoothing)) + 0.5)
