"""GCT in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ops import torch as ops
from ..torch import Block
from . import spec


class GCT(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.GCT`."""

    spec: spec.GCT
    embedding_weight: Tensor
    gating_weight: Tensor
    gating_bias: Tensor

    def __init__(
        self, channels: int, mode: str = "l2", epsilon: float = 1e-5, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(args := spec.GCT(channels, mode, epsilon))
        for name, weight in args.weights.items():
            tensor = torch.empty(weight.shape, **ops.factory_options(device, dtype))
            self.register_parameter(name, nn.Parameter(tensor))
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S) -> (N, C, 1..)."""
        self.check_inputs(x)
        order, epsilon = self.spec.order, self.spec.epsilon
        norm = ops.spatial_norm(x, order, epsilon)                    # (N, C), float32 if x is half precision
        weights = self.embedding_weight, self.gating_weight, self.gating_bias
        embedding, gating, bias = (ops.in_dtype_of(norm, weight) for weight in weights)
        n = ops.over_channel_norm(embedding * norm, order, epsilon)   # (N, C)
        return ops.expand(ops.in_dtype_of(x, 1 + ops.tanh(gating * n + bias)), x)

    @staticmethod
    def triton_form() -> Any:
        """Return the module of the fused kernels."""
        from . import triton
        return triton
