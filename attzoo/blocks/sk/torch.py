"""SK in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor, nn

from ...ops import torch as ops
from ..torch import Block
from . import spec


class SK(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.SK`."""

    spec: spec.SK

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        kernel_sizes: Sequence[int] = (3, 5),
        dilated: bool = True,
        groups: int | None = None,
        split: bool = False,
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        further_args = (kernel_sizes, dilated, groups, split, spatial_dims)
        super().__init__(args := spec.SK(channels, reduction, reduced_channels, *further_args))
        options = ops.factory_options(device, dtype)
        for name, dilation in args.paths.items():
            setattr(self, name, self.conv_same(name, dilation=dilation, groups=args.group_count, **options))
            setattr(self, f"{name}_norm", self.batch_norm(f"{name}_norm", args.spatial_dims, **options))
        self.names = tuple(args.paths)
        self.reduce = nn.Linear(args.channels, args.width, bias=False, **options)
        self.reduce_norm = self.batch_norm("reduce_norm", 1, **options)
        self.select = nn.Linear(args.width, len(self.names) * args.channels, bias=False, **options)
        self.reset_parameters()

    def attention(self, x: Tensor, *, outputs: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Return the coefficients: (N, C, *S) -> (N, C, 1..) per path. outputs: those of the paths, if known."""
        self.check_inputs(x)
        outputs = self.operands(x) if outputs is None else outputs
        s = ops.avg_pool(reduce(add, outputs))                              # (N, C)
        h = ops.apply_norm(self.reduce_norm, self.reduce(s))                # (N, R)
        z = self.select(ops.relu(h)).reshape(-1, len(self.names), self.spec.channels)
        a = ops.in_dtype_of(x, ops.position_softmax(z.transpose(1, 2)))    # (N, C, paths)
        return {name: ops.expand(a[..., i], x) for i, name in enumerate(self.names)}

    def operands(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the paths: (N, C, *S) -> (N, C, *S) per path."""
        count = len(self.names)
        parts = x.split(self.spec.path_channels, 1) if self.spec.split else (x,) * count
        layers = [(getattr(self, name), getattr(self, f"{name}_norm")) for name in self.names]
        return [ops.relu(ops.apply_norm(norm, conv(parts[i]))) for i, (conv, norm) in enumerate(layers)]

    def plain(self, x: Tensor) -> Tensor:   # type: ignore[override]
        """Return the sum of the products of the paths' outputs and their coefficients: (N, C, *S) -> (N, C, *S)."""
        outputs = self.operands(x)
        return self.spec.combine(outputs, self.attention(x, outputs=outputs), ops)
