"""Centered in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attzoo.blocks.torch import Block
from attzoo.ops import torch as ops

from . import spec


class Centered(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.Centered`."""

    spec: spec.Centered

    def __init__(self, channels: int, momentum: float = 0.25, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(args := spec.Centered(channels, momentum))
        options = ops.factory_options(device, dtype)
        self.weight = nn.Parameter(torch.empty(args.channels, **options))
        self.register_buffer("center", torch.empty(args.channels, **options))
        self.register_buffer("table", torch.tensor(args.table, **{"dtype": torch.get_default_dtype()} | options), False)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, 1..)."""
        self.check_inputs(x)
        s = ops.avg_pool(x)                                                  # (N, C)
        weight, table, center = (ops.in_dtype_of(s, tensor) for tensor in (self.weight, self.table, self.center))
        z = weight * table * (s - center)                                    # (N, C)
        if self.training:
            with torch.no_grad():
                mean = s.mean(0).to(self.center.dtype)
                self.center.copy_(self.center + self.spec.momentum * (mean - self.center))
        return ops.expand(ops.sigmoid(z), x)
