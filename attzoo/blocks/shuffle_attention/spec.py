"""The reference implementation of shuffle attention in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ... import contract
from ...contract import Array, Example, Weight, group_norm
from ...ops import numpy as ops
from ..spec import BlockSpec

CHOICES: Final = {"groups": (2, 1, 4)}
EXAMPLES: Final = {
    "": Example({"channels": 8, "groups": 2}, ((2, 8, 4, 5),)),
}


@dataclass(frozen=True)
class ShuffleAttention(BlockSpec):
    """channels: C, channels of the input, a multiple of 2 * groups.

    groups: G >= 1, groups of consecutive channels.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    groups: int = 64

    def __post_init__(self) -> None:
        channels, groups = contract.integer("channels", self.channels), contract.integer("groups", self.groups)
        contract.check_groups(channels, groups, parts=2)
        contract.set_fields(self, channels=channels, groups=groups)

    @property
    def width(self) -> int:
        """Return D, the number of channels of each half of a group."""
        return self.channels // (2 * self.groups)

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        shape, weights = (self.width,), group_norm("norm", self.width)
        for name in ("channel", "position"):
            weights |= {f"{name}_weight": Weight(shape, "constant")}
            weights |= {f"{name}_bias": Weight(shape, "constant", center=1.0)}
        return weights

    def macs(self, x: Sequence[int]) -> int:
        """Return 0, because only convolutions and matrix products count."""
        return 0

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the coefficients, in the order of the channels of x."""
        self.check_inputs(x.shape)
        g = ops.fold_groups(x, self.groups)                        # (N G, 2 D, *S)
        x0, x1 = g[:, : self.width], g[:, self.width :]            # (N G, D, *S) each
        s = ops.avg_pool(x0)                                       # (N G, D)
        a0 = ops.sigmoid(s * weights["channel_weight"] + weights["channel_bias"])
        q = ops.group_norm(x1, weights, "norm", self.width)        # (N G, D, *S)
        w, b = (ops.expand(weights[f"position_{name}"][None], x1) for name in ("weight", "bias"))
        a1 = ops.sigmoid(q * w + b)
        halves = np.broadcast_to(ops.expand(a0, x0), x0.shape), a1
        return ops.unfold_groups(np.concatenate(halves, axis=1), self.groups)

    def combine(self, x: Any, coefficients: Any, ops: Any) -> Any:
        """Return the products of x and the coefficients, with channels shuffled. Channels are on axis 1."""
        return ops.channel_shuffle(x * coefficients, 2)
