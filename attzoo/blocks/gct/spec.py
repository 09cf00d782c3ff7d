"""The reference implementation of GCT in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ... import contract
from ...contract import Array, Example, Weight
from ...ops import numpy as ops
from ..spec import BlockSpec

ORDERS: Final = {"l2": 2, "l1": 1}   # mode -> order of the norms
CHOICES: Final = {"mode": tuple(ORDERS), "epsilon": (1e-5, 1e-2)}
EXAMPLES: Final = {
    "": Example({"channels": 8}, ((2, 8, 6, 5),)),
    "l1": Example({"channels": 8, "mode": "l1"}, ((2, 8, 6, 5),)),
}


@dataclass(frozen=True)
class GCT(BlockSpec):
    """channels: C >= 1, channels of the input.

    mode: "l2" for norms that are roots of sums of squares, or "l1" for sums of magnitudes.
    epsilon: > 0, added where a norm could be 0.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    mode: str = "l2"
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        contract.set_fields(
            self,
            channels=contract.integer("channels", self.channels),
            mode=contract.choice("mode", self.mode, tuple(ORDERS)),
            epsilon=contract.positive("epsilon", self.epsilon),
        )

    @property
    def order(self) -> int:
        """Return the order of the norms, 1 or 2."""
        return ORDERS[self.mode]

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        shape = (self.channels,)
        return {
            "embedding_weight": Weight(shape, "constant", center=1.0),
            "gating_weight": Weight(shape, "constant"),
            "gating_bias": Weight(shape, "constant"),
        }

    def macs(self, x: Sequence[int]) -> int:
        """Return 0, because only convolutions and matrix products count."""
        return 0

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, 1..). Return the coefficients."""
        self.check_inputs(x.shape)
        e = weights["embedding_weight"] * ops.spatial_norm(x, self.order, self.epsilon)   # (N, C)
        n = ops.over_channel_norm(e, self.order, self.epsilon)                            # (N, C)
        return ops.expand(1 + ops.tanh(weights["gating_weight"] * n + weights["gating_bias"]), x)
