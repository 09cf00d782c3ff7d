"""BAM in PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...ops import torch as ops
from ..torch import Block
from . import spec


class BAM(Block):
    """(N, C, *S) -> (N, C, *S); arguments and errors as `spec.BAM`."""

    spec: spec.BAM

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        dilation: int = 4,
        combination: str = "one_plus_sigmoid_of_product",
        norm: bool = True,
        norm_after: str = "hidden",
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        further_args = (dilation, combination, norm, norm_after, spatial_dims)
        super().__init__(args := spec.BAM(channels, reduction, reduced_channels, *further_args))
        options = ops.factory_options(device, dtype)
        self.squeeze = nn.Linear(args.channels, args.width, **options)
        self.excite = nn.Linear(args.width, args.channels, **options)
        self.reduce = self.conv_same("reduce", **options)
        self.context1 = self.conv_same("context1", dilation=args.dilation, **options)
        self.context2 = self.conv_same("context2", dilation=args.dilation, **options)
        self.score = self.conv_same("score", **options)
        self.squeeze_norm = self.batch_norm("squeeze_norm", 1, **options)
        self.excite_norm = self.batch_norm("excite_norm", 1, **options)
        self.reduce_norm = self.batch_norm("reduce_norm", args.spatial_dims, **options)
        self.context1_norm = self.batch_norm("context1_norm", args.spatial_dims, **options)
        self.context2_norm = self.batch_norm("context2_norm", args.spatial_dims, **options)
        self.score_norm = self.batch_norm("score_norm", args.spatial_dims, **options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """Return the coefficients before the sigmoid: (N, C, *S) -> channel (N, C, 1..), position (N, 1, *S)."""
        self.check_inputs(x)
        s = ops.avg_pool(x)                                                  # (N, C)
        u = ops.apply_norm(self.squeeze_norm, self.squeeze(s))
        c = ops.apply_norm(self.excite_norm, self.excite(ops.relu(u)))
        h = ops.apply_norm(self.reduce_norm, self.reduce(x))
        h = ops.apply_norm(self.context1_norm, self.context1(ops.relu(h)))    # (N, R, *S)
        h = ops.apply_norm(self.context2_norm, self.context2(ops.relu(h)))
        p = ops.apply_norm(self.score_norm, self.score(ops.relu(h)))
        return {"channel": ops.expand(c, x), "position": p}
