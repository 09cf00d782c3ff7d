"""Spatial attention in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...fast import cpu
from ...ops import torch as ops
from ..torch import Block
from . import spec


class SpatialAttention(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.SpatialAttention`."""

    spec: spec.SpatialAttention
    cpu_form = cpu.SPATIAL

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        norm: bool = False,
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.SpatialAttention(channels, kernel_size, norm, spatial_dims))
        factory_options = ops.factory_options(device, dtype)
        self.conv = self.conv_same("conv", **factory_options)
        self.norm = ops.BATCH_NORM[args.spatial_dims](1, **factory_options) if args.norm else nn.Identity()
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, 1, *S)."""
        self.check_inputs(x)
        return self.coefficients(ops.mean_and_max(x, 1))

    def coefficients(self, maps: Tensor) -> Tensor:
        """Return the coefficients (N, 1, *S) from average and maximum over channels, (N, 2, *S)."""
        logits = self.conv(maps)    # (N, 1, *S)
        return ops.sigmoid(ops.apply_norm(self.norm, logits))

    @staticmethod
    def triton_form() -> Any:
        """Return the module of the fused kernels."""
        from . import triton
        return triton
