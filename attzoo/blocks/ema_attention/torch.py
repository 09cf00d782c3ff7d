"""EMA in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import torch as ops
from ..torch import Block
from . import spec


class EMAAttention(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.EMAAttention`."""

    spec: spec.EMAAttention

    def __init__(
        self, channels: int, groups: int = 32, spatial_dims: int = 2, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(args := spec.EMAAttention(channels, groups, spatial_dims))
        options = ops.factory_options(device, dtype)
        self.pointwise = ops.Linear(args.width, args.width, **options)
        self.norm = ops.GroupNorm(args.width, args.width, **options)
        self.conv = self.conv_same("conv", **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients, which are equal in all channels of a group: (N, C, *S) -> (N, C, *S)."""
        self.check_inputs(x)
        g = ops.fold_groups(x, self.spec.groups)                        # (N G, D, *S)
        p = ops.split_axes(self.pointwise(ops.axis_means(g)), g)        # (N G, D, 1.., S[i], 1..)
        u = g
        for i in range(self.spec.spatial_dims):
            u = u * ops.sigmoid(p[i])
        u = self.norm(u)                                                # (N G, D, *S)
        v = self.conv(g)                                                # (N G, D, *S)
        q = ops.weighted_sum(v, ops.channel_softmax(ops.avg_pool(u)))   # (N G, 1, *S)
        q = q + ops.weighted_sum(u, ops.channel_softmax(ops.avg_pool(v)))
        return ops.repeat_channels(ops.unfold_groups(ops.sigmoid(q), self.spec.groups), self.spec.width)
