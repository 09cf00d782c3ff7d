"""scSE with any combination, in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from attzoo.blocks.torch import Block
from attzoo.ops import torch as ops

from . import spec


class Combined(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.Combined`."""

    spec: spec.Combined

    def __init__(
        self,
        channels: int,
        width: int = 2,
        combination: str = "sum_of_products",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.Combined(channels, width, combination))
        options = ops.factory_options(device, dtype)
        self.squeeze = nn.Linear(args.channels, args.width, **options)
        self.excite = nn.Linear(args.width, args.channels, **options)
        self.score = ops.Linear(args.channels, 1, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, *S) -> channel (N, C, 1..), position (N, 1, *S)."""
        self.check_inputs(x)
        s = ops.avg_pool(x)                           # (N, C)
        h = ops.relu(self.squeeze(s))
        z = self.excite(h)                            # (N, C)
        logits = self.score(x)                             # (N, 1, *S)
        return {"channel": ops.expand(ops.sigmoid(z), x), "position": ops.sigmoid(logits)}
