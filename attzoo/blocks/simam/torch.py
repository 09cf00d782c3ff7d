"""SimAM in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import torch as ops
from ..torch import Block
from . import spec


class SimAM(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.SimAM`."""

    spec: spec.SimAM

    def __init__(
        self,
        channels: int,
        e_lambda: float = 1e-4,
        unbiased: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(spec.SimAM(channels, e_lambda, unbiased))
        ops.factory_options(device, dtype)   # raises for a dtype that blocks do not support

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, C, *S)."""
        self.check_inputs(x)
        r = ops.relative_deviation(x, self.spec.e_lambda, self.spec.unbiased)    # (N, C, *S)
        return ops.sigmoid(r / 4 + 0.5)
