"""Coordinate attention in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import torch as ops
from ..torch import Block
from . import spec


class CoordAttention(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.CoordAttention`."""

    spec: spec.CoordAttention

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            args := spec.CoordAttention(channels, reduction, reduced_channels, bias, gate, spatial_dims)
        )
        factory_options = ops.factory_options(device, dtype)
        options = {"bias": args.bias} | factory_options
        self.squeeze = ops.Linear(args.channels, args.width, **options)
        self.squeeze_norm = ops.BATCH_NORM[1](args.width, **factory_options)
        for name in args.axes:
            self.add_module(name, ops.Linear(args.width, args.channels, **options))
        self.reset_parameters()

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """Return the coefficients by name of the axis: (N, C, *S) -> (N, C, 1.., S[i], 1..) for each axis i."""
        self.check_inputs(x)
        s = ops.axis_means(x)                               # (N, C, sum of S)
        u = ops.apply_norm(self.squeeze_norm, self.squeeze(s))      # (N, R, sum of S)
        z = ops.split_axes(ops.hard_swish(u), x)            # (N, R, 1.., S[i], 1..)
        gate = ops.GATES[self.spec.gate]
        return {name: gate(getattr(self, name)(z[i])) for i, name in enumerate(self.spec.axes)}
