"""The reference implementation of ECA in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log2
from typing import Final

from ... import contract
from ...contract import Array, Example, Weight
from ...ops import numpy as ops
from ..spec import BlockSpec

PADDINGS: Final = {"zeros": "constant", "circular": "wrap"}   # torch's word -> numpy.pad's
CHOICES: Final = {"kernel_size": (None, 1, 5), "gamma": (None, 0.5), "b": (None, 4.0), "padding": tuple(PADDINGS)}
EXAMPLES: Final = {"": Example({"channels": 8, "kernel_size": 5, "padding": "circular"}, ((2, 8, 6, 5),))}


def adaptive_kernel_size(channels: int, gamma: float = 2.0, b: float = 1.0) -> int:
    """Return the odd integer nearest to |(log2(channels) + b) / gamma|, the larger one of two (eq. 12).

    Raises ValueError for a result above 2^31.

    >>> [adaptive_kernel_size(c) for c in (4, 64, 128, 512, 2048)]
    [1, 3, 5, 5, 7]
    """
    size = abs((log2(channels) + b) / gamma)
    if size > 2**31:
        fix = "set kernel_size, or a larger |gamma| or smaller |b|"
        raise ValueError(f"kernel_size must be at most 2^31, got {size:.4g} from gamma={gamma} and b={b}: {fix}")
    return 2 * floor(size / 2) + 1


@dataclass(frozen=True)
class ECA(BlockSpec):
    """channels: C >= 1, channels of the input.

    kernel_size: odd k >= 1, in channels; None means the odd integer nearest to |(log2(C) + b) / gamma|, the larger one
        of two.
    gamma: divisor in the rule for kernel_size, dimensionless, not 0; None means 2. Only without kernel_size.
    b: summand in the rule for kernel_size, dimensionless; None means 1. Only without kernel_size.
    padding: values beyond the first and last channel: "zeros", or "circular", the channels at the other end.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    kernel_size: int | None = None
    gamma: float | None = contract.rule_for("kernel_size")
    b: float | None = contract.rule_for("kernel_size")
    padding: str = "zeros"

    def __post_init__(self) -> None:
        contract.refuse_idle_rules(self)
        channels, k = contract.integer("channels", self.channels), self.kernel_size
        if k is None:
            gamma = contract.number("gamma", 2.0 if self.gamma is None else self.gamma)
            b = contract.number("b", 1.0 if self.b is None else self.b)
            if gamma == 0:
                raise ValueError("gamma must not be 0, got 0: leave it out for 2, or set kernel_size")
            contract.set_fields(self, gamma=gamma, b=b)
            k = adaptive_kernel_size(channels, gamma, b)
        contract.set_fields(
            self,
            channels=channels,
            kernel_size=contract.odd("kernel_size", k),
            padding=contract.choice("padding", self.padding, tuple(PADDINGS)),
        )
        if self.padding == "circular" and self.k // 2 > channels:
            limit, fix = f"2 * channels + 1 = {2 * channels + 1}", "set a smaller kernel_size, or padding='zeros'"
            raise ValueError(f"kernel_size must be <= {limit} with padding='circular', got {k}: {fix}")

    @property
    def k(self) -> int:
        """Return the kernel size, in channels."""
        assert self.kernel_size is not None   # set in __post_init__; for the type checker
        return self.kernel_size

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        return {"conv.weight": Weight((self.k,), "uniform", self.k**-0.5)}

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the convolution, for x of shape (N, C, *S)."""
        return x[0] * self.channels * self.k

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, 1..). Return the coefficients."""
        self.check_inputs(x.shape)
        s = ops.avg_pool(x)                                                                        # (N, C)
        logits = ops.conv_same(s[:, None], weights["conv.weight"][None, None], PADDINGS[self.padding])[:, 0]
        return ops.expand(ops.sigmoid(logits), x)
