"""GE in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import torch as ops
from ..torch import Block
from . import spec


class GE(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.GE`."""

    spec: spec.GE

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        extent: int = 8,
        learned: bool = True,
        mlp: bool = True,
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.GE(channels, reduction, reduced_channels, extent, learned, mlp, spatial_dims))
        options = ops.factory_options(device, dtype)
        for i in args.steps:
            setattr(self, f"conv{i}", self.conv_same(f"conv{i}", groups=args.channels, stride=2, **options))
            setattr(self, f"norm{i}", self.batch_norm(f"norm{i}", args.spatial_dims, **options))
        if args.mlp:
            self.squeeze = self.conv_same("squeeze", **options)
            self.excite = self.conv_same("excite", **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, C, *S), or (N, C, 1..) if the extent is 0."""
        self.check_inputs(x)
        p = x
        if self.spec.extent == 0:
            p = ops.expand(ops.avg_pool(x), x)                  # (N, C, 1..)
        elif not self.spec.learned:
            p = ops.strided_avg_pool(x, self.spec.extent)       # (N, C, *L)
        for i in self.spec.steps:
            p = ops.relu(p) if i > 1 else p
            p = ops.apply_norm(getattr(self, f"norm{i}"), getattr(self, f"conv{i}")(p))
        if self.spec.mlp:
            h = ops.relu(self.squeeze(p))    # (N, R, *L)
            p = self.excite(h)
        a = ops.sigmoid(p)
        return ops.resize(a, x.shape[2:], "floor", False) if self.spec.extent else a
