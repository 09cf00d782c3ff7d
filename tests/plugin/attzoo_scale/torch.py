"""Scale in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attzoo.blocks.torch import Block
from attzoo.ops import torch as ops

from . import spec


class Scale(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.Scale`."""

    spec: spec.Scale

    def __init__(self, channels: int, start: float = 0.0, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(spec.Scale(channels, start))
        self.logit = nn.Parameter(torch.empty(channels, **ops.factory_options(device, dtype)))
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (1, C, 1..)."""
        self.check_inputs(x)
        return ops.expand(ops.sigmoid(self.logit)[None], x)
