"""ECA in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import torch as ops
from ..torch import Block
from . import spec


class ECA(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.ECA`."""

    spec: spec.ECA

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float | None = None,
        b: float | None = None,
        padding: str = "zeros",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.ECA(channels, kernel_size, gamma, b, padding))
        options = {"padding": args.k // 2, "padding_mode": args.padding, "bias": False}
        options |= ops.factory_options(device, dtype)
        self.conv = ops.CONV[1](1, 1, args.k, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, C, 1..)."""
        self.check_inputs(x)
        s = ops.avg_pool(x)                # (N, C)
        logits = self.conv(s[:, None])[:, 0]    # (N, C)
        return ops.expand(ops.sigmoid(logits), x)

    @staticmethod
    def triton_form() -> Any:
        """Return the module of the fused kernels."""
        from . import triton
        return triton
