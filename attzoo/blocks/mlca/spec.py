"""The reference implementation of MLCA in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from ... import contract
from ...contract import Array, Example, Weight
from ...ops import numpy as ops
from ..eca import spec as eca
from ..eca.spec import ECA
from ..spec import BlockSpec

RULE: Final = {name: eca.CHOICES[name] for name in ("kernel_size", "gamma", "b")}
CHOICES: Final = RULE | {"local_size": (5, 1, 3), "local_weight": (0.5, 0.0, 1.0)}
EXAMPLES: Final = {"": Example({"channels": 8, "local_size": 3}, ((2, 8, 7, 5),))}


@dataclass(frozen=True)
class MLCA(BlockSpec):
    """channels: C >= 1, channels of the input.

    kernel_size: odd k >= 1, in channels; None means the odd integer nearest to |(log2(C) + b) / gamma|, the larger one
        of two.
    gamma: divisor in the rule for kernel_size, dimensionless, not 0; None means 2. Only without kernel_size.
    b: summand in the rule for kernel_size, dimensionless; None means 1. Only without kernel_size.
    local_size: L >= 1, windows along every axis of space.
    local_weight: 0 to 1, the share of the local coefficients; that of the global ones is the rest.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    kernel_size: int | None = None
    gamma: float | None = contract.rule_for("kernel_size")
    b: float | None = contract.rule_for("kernel_size")
    local_size: int = 5
    local_weight: float = 0.5

    def __post_init__(self) -> None:
        rule = ECA(self.channels, self.kernel_size, self.gamma, self.b)   # checks the arguments
        contract.set_fields(
            self,
            channels=rule.channels,
            kernel_size=rule.kernel_size,
            gamma=rule.gamma,
            b=rule.b,
            local_size=contract.integer("local_size", self.local_size),
            local_weight=contract.number("local_weight", self.local_weight),
        )
        if not 0 <= self.local_weight <= 1:
            raise ValueError(f"local_weight must be between 0 and 1, got {self.local_weight}")

    @property
    def k(self) -> int:
        """Return the kernel size, in channels."""
        assert self.kernel_size is not None   # set in __post_init__; for the type checker
        return self.kernel_size

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        kernel = Weight((self.k,), "uniform", self.k**-0.5)
        return {"conv.weight": kernel, "local_conv.weight": kernel}

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of both convolutions, for x of shape (N, C, *S)."""
        grids: int = 1 + self.local_size ** (len(x) - 2)
        return x[0] * self.channels * self.k * grids

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the coefficients."""
        self.check_inputs(x.shape)
        p = ops.adaptive_avg_pool(x, self.local_size)                                 # (N, C, *L)
        s = ops.avg_pool(p)                                                           # (N, C)
        last = np.moveaxis(p, 1, -1)                                                  # (N, *L, C)
        rows = last.reshape(len(x), prod(last.shape[1:]))                             # (N, product of L * C)
        u = self._correlate(rows, weights["local_conv.weight"])                       # (N, product of L * C)
        z = ops.expand(self._correlate(s, weights["conv.weight"]), x)                 # (N, C, 1..)
        local = ops.sigmoid(np.moveaxis(u.reshape(last.shape), -1, 1))                # (N, C, *L)
        unpooled = ops.adaptive_avg_pool(local, x.shape[2:])                          # (N, C, *S)
        return self.local_weight * unpooled + (1 - self.local_weight) * ops.sigmoid(z)

    @staticmethod
    def _correlate(rows: Array, kernel: Array) -> Array:
        """Return the cross-correlation of each row with a kernel (k,), padded with zeros: (N, M) -> (N, M)."""
        return ops.conv_same(rows[:, None], kernel[None, None])[:, 0]
