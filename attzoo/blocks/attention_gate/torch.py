"""The additive attention gate in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...ops import torch as ops
from ..torch import Block
from . import cpu, spec
from .cpu import project


class AttentionGate(Block):
    """(N, C, *S), (N, G, *G) -> (N, C, *S); arguments and errors as `spec.AttentionGate`."""

    spec: spec.AttentionGate
    cpu_form = cpu.FORM

    def __init__(
        self,
        channels: int,
        gating_channels: int,
        inter_channels: int | None = None,
        stride: int | Sequence[int] = 1,
        skip_bias: bool = True,
        norm: bool = False,
        output_transform: bool = False,
        interpolation: str = "linear",
        align_corners: bool = False,
        spatial_dims: int = 2,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        options = (stride, skip_bias, norm, output_transform, interpolation, align_corners, spatial_dims)
        super().__init__(args := spec.AttentionGate(channels, gating_channels, inter_channels, *options))
        factory_options = ops.factory_options(device, dtype)
        Conv = partial(ops.CONV[args.spatial_dims], **factory_options)
        Norm = partial(ops.BATCH_NORM[args.spatial_dims], **factory_options)
        self.skip = Conv(args.channels, args.width, args.strides, args.strides, bias=args.skip_bias)
        self.gating = Conv(args.gating_channels, args.width, 1)
        self.psi = Conv(args.width, 1, 1)
        self.skip_norm, self.gating_norm = (Norm(args.width) if args.norm else nn.Identity() for _ in range(2))
        self.psi_norm = Norm(1) if args.norm else nn.Identity()
        self.output = Conv(args.channels, args.channels, 1) if args.output_transform else nn.Identity()
        self.output_norm = Norm(args.channels) if args.output_transform else nn.Identity()
        self.reset_parameters()

    def attention(self, x: Tensor, g: Tensor) -> Tensor:
        """Return the coefficients: (N, C, *S), (N, G, *G) -> (N, 1, *S)."""
        self.check_inputs(x, g)
        resampling = self.spec.interpolation, self.spec.align_corners
        skip = ops.apply_norm(self.skip_norm, project(self.skip, x))
        gating = ops.resize(ops.apply_norm(self.gating_norm, project(self.gating, g)), skip.shape[2:], *resampling)
        h = skip.add_(gating).relu_() if cpu.overwrites(self, skip, gating) else ops.relu(skip + gating)
        logits = ops.apply_norm(self.psi_norm, project(self.psi, h))
        return ops.resize(ops.sigmoid(logits), x.shape[2:], *resampling)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:   # type: ignore[override]
        """Return the output: (N, C, *S), (N, G, *G) -> (N, C, *S). Raise TypeError or ValueError for other inputs."""
        self.check_inputs(x, g)
        return ops.apply_norm(self.output_norm, self.output(self.compute(x, g)))

    @staticmethod
    def triton_form() -> Any:
        """Return the module of the fused kernels."""
        from . import triton
        return triton
