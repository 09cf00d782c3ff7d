"""eSE in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...ops import torch as ops
from ..torch import Block
from . import spec


class ESE(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.ESE`."""

    spec: spec.ESE

    def __init__(
        self, channels: int, bias: bool = True, gate: str = "hard_sigmoid", *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(args := spec.ESE(channels, bias, gate))
        options = {"bias": args.bias} | ops.factory_options(device, dtype)
        self.excite = nn.Linear(args.channels, args.channels, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, C, 1..)."""
        self.check_inputs(x)
        s = ops.avg_pool(x)      # (N, C)
        z = self.excite(s)       # (N, C)
        return ops.expand(ops.GATES[self.spec.gate](z), x)

    @staticmethod
    def triton_form() -> Any:
        """Return the module of the fused kernels."""
        from . import triton
        return triton
