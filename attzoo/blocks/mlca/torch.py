"""MLCA in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import torch as ops
from ..torch import Block
from . import spec


class MLCA(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.MLCA`."""

    spec: spec.MLCA

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float | None = None,
        b: float | None = None,
        local_size: int = 5,
        local_weight: float = 0.5,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.MLCA(channels, kernel_size, gamma, b, local_size, local_weight))
        options = {"padding": args.k // 2, "bias": False} | ops.factory_options(device, dtype)
        self.conv = ops.CONV[1](1, 1, args.k, **options)
        self.local_conv = ops.CONV[1](1, 1, args.k, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, C, *S)."""
        self.check_inputs(x)
        p = ops.adaptive_avg_pool(x, self.spec.local_size)        # (N, C, *L)
        s = ops.avg_pool(p)                                       # (N, C)
        last = p.movedim(1, -1)                                   # (N, *L, C)
        u = self.local_conv(last.flatten(1)[:, None])             # (N, 1, product of L * C)
        z = ops.expand(self.conv(s[:, None])[:, 0], x)            # (N, C, 1..)
        local = ops.sigmoid(ops.move_last(u.reshape(last.shape)))    # (N, C, *L)
        unpooled = ops.adaptive_avg_pool(local, x.shape[2:])         # (N, C, *S)
        return self.spec.local_weight * unpooled + (1 - self.spec.local_weight) * ops.sigmoid(z)
