"""Triplet attention in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import torch as ops
from ..torch import Block
from . import spec


class TripletAttention(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.TripletAttention`."""

    spec: spec.TripletAttention

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        no_spatial: bool = False,
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.TripletAttention(channels, kernel_size, no_spatial, spatial_dims))
        options, k = ops.factory_options(device, dtype), args.kernel_size
        for name in args.maps:
            self.add_module(f"{name}_conv", ops.CONV[args.spatial_dims](2, 1, k, padding=k // 2, bias=False, **options))
            self.add_module(f"{name}_norm", ops.BATCH_NORM[args.spatial_dims](1, **options))
        self.reset_parameters()

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """Return the coefficients: (N, C, *S) -> by name of the map, (N, C, *S) with size 1 along the pooled axis."""
        self.check_inputs(x)
        coefficients = {}
        for name, axis in self.spec.maps.items():
            m = ops.mean_and_max(x, axis)                              # (N, 2, *map)
            q = getattr(self, f"{name}_conv")(m)                       # (N, 1, *map)
            z = ops.apply_norm(getattr(self, f"{name}_norm"), q)
            coefficients[name] = ops.sigmoid(z).transpose(1, axis)
        return coefficients
