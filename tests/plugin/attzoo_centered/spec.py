"""The definition of Centered in NumPy; torch.py and keras.py must agree with this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from attzoo import contract
from attzoo.blocks.spec import BlockSpec
from attzoo.contract import Array, Example, Weight
from attzoo.ops import numpy as ops

CHOICES: Final = {"momentum": (0.25, 0.5)}
EXAMPLES: Final = {"": Example({"channels": 6}, ((2, 6, 6, 5),))}


@dataclass(frozen=True)
class Centered(BlockSpec):
    """channels: C >= 1, channels of the input.

    momentum: weight of the current batch in the running mean.
    Raises TypeError or ValueError when a value is outside these bounds.
    """

    channels: int
    momentum: float = 0.25

    def __post_init__(self) -> None:
        channels = contract.integer("channels", self.channels)
        contract.set_fields(self, channels=channels, momentum=contract.number("momentum", self.momentum))

    @property
    def table(self) -> Array:
        """Return the constants, (C,)."""
        return np.cos(np.pi * np.arange(self.channels) / self.channels)

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the weight and the running mean by canonical name."""
        shape = (self.channels,)
        return {"weight": Weight(shape, "uniform", 1.0), "center": Weight(shape, "constant", trainable=False)}

    def macs(self, x: Sequence[int]) -> int:
        """Return 0, because there are no linear maps."""
        return 0

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, 1..)."""
        self.check_inputs(x.shape)
        s = ops.avg_pool(x)                                                  # (N, C)
        z = weights["weight"] * self.table * (s - weights["center"])         # (N, C)
        if training:
            center = weights["center"]
            center += self.momentum * (s.mean(axis=0) - center)
        return ops.expand(ops.sigmoid(z), x)
