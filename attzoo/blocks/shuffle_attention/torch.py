"""Shuffle attention in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ops import torch as ops
from ..torch import Block
from . import spec


class ShuffleAttention(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.ShuffleAttention`."""

    spec: spec.ShuffleAttention

    def __init__(self, channels: int, groups: int = 64, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(args := spec.ShuffleAttention(channels, groups))
        options = ops.factory_options(device, dtype)
        self.channel_weight = nn.Parameter(torch.empty(args.width, **options))
        self.channel_bias = nn.Parameter(torch.empty(args.width, **options))
        self.position_weight = nn.Parameter(torch.empty(args.width, **options))
        self.position_bias = nn.Parameter(torch.empty(args.width, **options))
        self.norm = ops.GroupNorm(args.width, args.width, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients, in the order of the channels of x: (N, C, *S) -> (N, C, *S)."""
        self.check_inputs(x)
        g = ops.fold_groups(x, self.spec.groups)                             # (N G, 2 D, *S)
        x0, x1 = g[:, : self.spec.width], g[:, self.spec.width :]            # (N G, D, *S) each
        s = ops.avg_pool(x0)                                                 # (N G, D)
        a0 = ops.sigmoid(s * ops.in_dtype_of(s, self.channel_weight) + ops.in_dtype_of(s, self.channel_bias))
        q = self.norm(x1)                                                    # (N G, D, *S)
        w, b = (ops.in_dtype_of(q, v) for v in (self.position_weight, self.position_bias))
        a1 = ops.sigmoid(q * ops.expand(w[None], x1) + ops.expand(b[None], x1))
        halves = ops.expand(a0, x0).expand_as(a1), a1
        return ops.unfold_groups(torch.cat(halves, 1), self.spec.groups)
