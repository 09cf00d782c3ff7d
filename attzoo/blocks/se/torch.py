"""SE in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...ops import fused
from ...ops import torch as ops
from . import spec


class SE(ops.Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.SE`; a call may end as `ops.finish` does."""

    spec: spec.SE

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(it := spec.SE(channels, reduction, reduced_channels, bias, gate))
        options = {"bias": it.bias} | ops.factory(device, dtype)
        self.squeeze = nn.Linear(it.channels, it.width, **options)
        self.excite = nn.Linear(it.width, it.channels, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, 1..)."""
        self.accept(x)
        s = ops.avg_pool(x)          # (N, C)
        h = ops.relu(self.squeeze(s))    # (N, R)
        z = self.excite(h)           # (N, C)
        return ops.expand(ops.GATES[self.spec.gate](z), x)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, act: str | None = None) -> Tensor:
        self.accept_residual(x, shortcut, act)
        if fused.serves(self, SE, x, shortcut):
            from . import triton
            return triton.fused(self, x, shortcut, act)
        return ops.finish_(super().forward(x), shortcut, act)
