"""scSE in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...ops import torch as ops
from ..torch import Block
from . import spec


class SCSE(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.SCSE`."""

    spec: spec.SCSE

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        combination: str = "max_of_products",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.SCSE(channels, reduction, reduced_channels, bias, gate, combination))
        options = {"bias": args.bias} | ops.factory_options(device, dtype)
        self.squeeze = nn.Linear(args.channels, args.width, **options)
        self.excite = nn.Linear(args.width, args.channels, **options)
        self.position = ops.Linear(args.channels, 1, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """Return the coefficients: (N, C, *S) -> channel (N, C, 1..), position (N, 1, *S)."""
        self.check_inputs(x)
        gate = ops.GATES[self.spec.gate]
        s = ops.avg_pool(x)                # (N, C)
        h = ops.relu(self.squeeze(s))      # (N, R)
        z = self.excite(h)                 # (N, C)
        q = self.position(x)               # (N, 1, *S)
        return {"channel": ops.expand(gate(z), x), "position": gate(q)}
