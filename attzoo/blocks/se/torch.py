"""SE in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...ops import torch as ops
from ..torch import Block
from . import spec


class SE(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.SE`."""

    spec: spec.SE

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        act: str = "relu",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.SE(channels, reduction, reduced_channels, bias, gate, act))
        options = {"bias": args.bias} | ops.factory_options(device, dtype)
        self.squeeze = nn.Linear(args.channels, args.width, **options)
        self.excite = nn.Linear(args.width, args.channels, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, C, 1..)."""
        self.check_inputs(x)
        s = ops.avg_pool(x)          # (N, C)
        h = ops.activate(self.squeeze(s), self.spec.act)    # (N, R)
        z = self.excite(h)           # (N, C)
        return ops.expand(ops.GATES[self.spec.gate](z), x)

    @staticmethod
    def triton_form() -> Any:
        """Return the module of the fused kernels."""
        from . import triton
        return triton
