"""SimAM in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attzoo.blocks.torch import Block
from attzoo.ops import torch as ops

from . import spec


class SimAM(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.SimAM`."""

    spec: spec.SimAM

    def __init__(self, channels: int, smoothing: float = 0.1, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(spec.SimAM(channels, smoothing))

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, *S)."""
        self.check_inputs(x)
        squared_deviations = (x - ops.expand(ops.avg_pool(x), x)) ** 2
        variance = ops.expand(ops.avg_pool(squared_deviations), x)
        return ops.sigmoid(squared_deviations / (4 * (variance + self.spec.smoothing)) + 0.5)
