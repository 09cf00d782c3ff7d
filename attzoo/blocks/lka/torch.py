"""LKA and LSKA in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import torch as ops
from ..torch import Block
from . import spec


class LKA(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.LKA`."""

    spec: spec.LKA

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        separable: bool = False,
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.LKA(channels, kernel_size, separable, spatial_dims))
        options = ops.factory_options(device, dtype)
        for name, dilation in args.dilations.items():
            setattr(self, name, self.conv_same(name, dilation=dilation, groups=args.channels, **options))
        self.names = tuple(args.dilations)
        self.mix = self.conv_same("mix", **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, C, *S)."""
        self.check_inputs(x)
        h = x
        for name in self.names:
            h = getattr(self, name)(h)
        return self.mix(h)
