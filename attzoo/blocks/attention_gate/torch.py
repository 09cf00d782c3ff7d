"""The additive attention gate in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

from torch import Tensor, nn

from ...ops import fused
from ...ops import torch as ops
from . import spec, torch_cpu
from .torch_cpu import project


class AttentionGate(ops.Block):
    """(N, C, *S), (N, G, *G) -> (N, C, *S); arguments and errors as `spec.AttentionGate`."""

    spec: spec.AttentionGate

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
        super().__init__(it := spec.AttentionGate(channels, gating_channels, inter_channels, *options))
        made = ops.factory(device, dtype)
        Conv, Norm = partial(ops.CONV[it.spatial_dims], **made), partial(ops.BATCH_NORM[it.spatial_dims], **made)
        self.skip = Conv(it.channels, it.width, it.strides, it.strides, bias=it.skip_bias)
        self.gating = Conv(it.gating_channels, it.width, 1)
        self.psi = Conv(it.width, 1, 1)
        self.skip_norm, self.gating_norm = (Norm(it.width) if it.norm else nn.Identity() for _ in range(2))
        self.psi_norm = Norm(1) if it.norm else nn.Identity()
        self.output = Conv(it.channels, it.channels, 1) if it.output_transform else nn.Identity()
        self.output_norm = Norm(it.channels) if it.output_transform else nn.Identity()
        self.reset_parameters()

    def attention(self, x: Tensor, g: Tensor) -> Tensor:
        """(N, C, *S), (N, G, *G) -> (N, 1, *S)."""
        self.accept(x, g)
        how = self.spec.interpolation, self.spec.align_corners
        t = ops.normalise(self.skip_norm, project(self.skip, x))
        p = ops.resize(ops.normalise(self.gating_norm, project(self.gating, g)), t.shape[2:], *how)
        h = t.add_(p).relu_() if torch_cpu.overwrites(self, t, p) else ops.relu(t + p)
        q = ops.normalise(self.psi_norm, project(self.psi, h))
        return ops.resize(ops.sigmoid(q), x.shape[2:], *how)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:   # type: ignore[override]
        return ops.normalise(self.output_norm, self.output(self.product(x, g)))

    def product(self, x: Tensor, g: Tensor) -> Tensor:
        """x * attention(x, g), one way or another: (N, C, *S), (N, G, *G) -> (N, C, *S)."""
        self.accept(x, g)
        if fused.serves(self, AttentionGate, x, g, unless=unserved):
            from . import triton
            return triton.fused(self, x, g)
        if torch_cpu.folds(self, ATTENTION, x, g):
            return torch_cpu.gated(self, x, g)
        return x * self.attention(x, g)


def unserved(gate: AttentionGate, x: Tensor, g: Tensor) -> str | None:
    """Why there are no kernels for a gate and its inputs; None where there are."""
    it = gate.spec
    convs: Any = gate.skip, gate.gating, gate.psi
    norms: Any = gate.skip_norm, gate.gating_norm, gate.psi_norm
    sizes = [(it.width, it.channels), (it.width, it.gating_channels), (1, it.width)]
    if [tuple(conv.weight.shape[:2]) for conv in convs] != sizes:
        return "its layers are of other sizes than it made"
    if any(norm.weight.shape != size[:1] for norm, size in zip(norms, sizes, strict=True) if it.norm):
        return "its layers are of other sizes than it made"
    if prod(it.strides) > 1:
        return f"it takes a stride of 1, got {it.strides}"
    if it.norm and not x.shape[0]:
        return "there is nothing to normalise in a batch of nothing"
    if it.width * max(prod(x.shape[2:]), prod(g.shape[2:])) >= fused.LONGEST:
        return f"it takes samples of fewer than 2^31 numbers within, got {tuple(x.shape)} and {tuple(g.shape)}"
    return None


ATTENTION = AttentionGate.attention   # as it is here, whatever a subclass or a listener puts in its place
