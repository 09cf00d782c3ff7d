"""GC in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...ops import torch as ops
from ..torch import Block
from . import spec


class GC(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.GC`."""

    spec: spec.GC

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        fusion: str = "add",
        epsilon: float = ops.EPSILON,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(args := spec.GC(channels, reduction, reduced_channels, fusion, epsilon))
        options = ops.factory_options(device, dtype)
        self.score = ops.Linear(args.channels, 1, **options)
        for term in args.terms:
            setattr(self, f"{term}_squeeze", nn.Linear(args.channels, args.width, **options))
            setattr(self, f"{term}_norm", ops.LayerNorm(args.width, args.epsilon, **options))
            setattr(self, f"{term}_excite", nn.Linear(args.width, args.channels, **options))
        self.reset_parameters()

    def attention(self, x: Any) -> Any:
        """Return the coefficients: (N, C, *S) -> (N, C, 1..), or with fusion="both" two such arrays by name."""
        self.check_inputs(x)
        p = ops.position_softmax(self.score(x))                       # (N, 1, *S)
        s = ops.weighted_pool(x, p)                                   # (N, C)
        arrays = {}
        for term in self.spec.terms:
            u = getattr(self, f"{term}_squeeze")(s)                   # (N, R)
            h = ops.relu(getattr(self, f"{term}_norm")(u))
            z = getattr(self, f"{term}_excite")(h)                    # (N, C)
            arrays[term] = ops.expand(ops.sigmoid(z) if term == "scale" else z, x)
        return self.spec.named(arrays)
