"""GC in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from attzoo.blocks.torch import Block
from attzoo.ops import torch as ops

from . import spec


class GC(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.GC`."""

    spec: spec.GC

    def __init__(self, channels: int, width: int = 3, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(args := spec.GC(channels, width))
        options = ops.factory_options(device, dtype)
        self.score = ops.Linear(args.channels, 1, **options)
        self.squeeze = nn.Linear(args.channels, args.width, **options)
        self.norm = ops.LayerNorm(args.width, **options)
        self.excite = nn.Linear(args.width, args.channels, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, 1..)."""
        self.check_inputs(x)
        probabilities = ops.position_softmax(self.score(x))                      # (N, 1, *S)
        s = ops.weighted_pool(x, probabilities)                                  # (N, C)
        h = self.norm(self.squeeze(s))
        return ops.expand(self.excite(ops.relu(h)), x)
