"""Channel attention in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...fast import cpu
from ...ops import torch as ops
from ..torch import Block
from . import spec


class ChannelAttention(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.ChannelAttention`."""

    spec: spec.ChannelAttention
    cpu_form = cpu.CHANNEL

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.ChannelAttention(channels, reduction, reduced_channels, bias, gate))
        options = {"bias": args.bias} | ops.factory_options(device, dtype)
        self.squeeze = nn.Linear(args.channels, args.width, **options)
        self.excite = nn.Linear(args.width, args.channels, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, C, 1..)."""
        self.check_inputs(x)
        return ops.expand(self.coefficients(ops.avg_pool(x), ops.max_pool(x)), x)

    def coefficients(self, avg: Tensor, maximum: Tensor) -> Tensor:
        """Return the coefficients (N, C) from average and maximum over space, (N, C) each."""
        z = self.mlp(avg) + self.mlp(maximum)    # (N, C)
        return ops.GATES[self.spec.gate](z)

    def mlp(self, s: Tensor) -> Tensor:
        """Apply the two-layer perceptron: (N, C) -> (N, C)."""
        h = ops.relu(self.squeeze(s))    # (N, R)
        return self.excite(h)

    @staticmethod
    def triton_form() -> Any:
        """Return the module of the fused kernels."""
        from . import triton
        return triton
