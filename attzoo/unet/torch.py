"""The U-Net in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from .. import registry
from ..contract import Spec
from ..ops import torch as ops
from . import spec
from .plan import Level, Unit


class UNet(ops.Block):
    """(N, C, *S) -> (N, K, *S); arguments and errors as `spec.UNet`."""

    spec: spec.UNet

    def __init__(self, in_channels: int, out_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(it := spec.UNet(in_channels, out_channels, *args, **kwargs))
        levels = list(enumerate(it.levels))
        self.encoder = nn.ModuleList(Units(level.encoder, it, level.block) for _, level in levels)
        self.gating = Units([it.gating_unit], it) if it.gating_unit else nn.Identity()
        self.up = nn.ModuleList(Units(level.up, it) for _, level in levels[:-1])
        self.skip = nn.ModuleDict({str(i): _block(level.gate) for i, level in levels if level.gate})
        self.combine = nn.ModuleDict({str(i): Units([level.combine], it) for i, level in levels if level.combine})
        self.decoder = nn.ModuleList(Units(level.decoder, it, level.block) for _, level in levels[:-1])
        Conv, k = ops.CONV[it.spatial_dims], it.out_channels
        heads = {str(i): Conv(level.channels, k, 1) for i, level in levels if level.supervised}
        self.supervision = nn.ModuleDict(heads)
        self.head = Conv(k * len(heads) or it.channels[0], k, 1)
        self.grad_checkpointing = False
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        self.accept(x)
        skips: list[Tensor] = []
        for level, encode in zip(self.spec.levels, self.encoder, strict=True):
            x = ops.pool(x, level.stride) if level.pool else x
            x = self._units(encode, x)
            skips.append(x)
        g = self.gating(x)
        heads: list[Tensor] = []
        for i in range(len(skips) - 2, -1, -1):
            e, level = skips[i], self.spec.levels[i]
            up = ops.crop(self._up(i, level, x), e.shape[2:])
            s = self._gate(str(i), e, g if self.spec.gating == "grid" else up)
            both = torch.cat([s, up] if self.spec.concat == "skip_first" else [up, s], dim=1)
            g = x = self._units(self.decoder[i], both)
            if level.supervised:
                heads.append(self.supervision[str(i)](x))
        if heads:
            x = torch.cat([ops.resize(h, x.shape[2:], "linear", False) for h in reversed(heads)], dim=1)
        y = self.head(x)
        return torch.sigmoid(y) if self.spec.head == "sigmoid" else y

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training keeps what levels compute, or computes it again on the way back: less memory, more time."""
        self.grad_checkpointing = enable

    def fuse(self) -> UNet:
        """A copy for inference: batch norms folded into the convolutions before them, weights laid out channels last.

        It computes the same to rounding, faster, and cannot be trained, saved or converted: keep the original.
        """
        fused = deepcopy(self).eval().requires_grad_(False)
        for module in list(fused.modules()):
            for name, norm in list(module.named_children()):
                if isinstance(norm, tuple(ops.BATCH_NORM.values())):
                    _fold(module, name, norm)
        form = {2: torch.channels_last, 3: torch.channels_last_3d}.get(self.spec.spatial_dims)
        return fused.to(memory_format=form) if form else fused   # type: ignore[call-overload]

    def _up(self, i: int, level: Level, x: Tensor) -> Tensor:
        if level.interpolation:
            size = [n * step for n, step in zip(x.shape[2:], self.spec.steps[i], strict=True)]
            x = ops.resize(x, size, level.interpolation, align_corners=False)
        return self._units(self.up[i], x)

    def _gate(self, key: str, e: Tensor, g: Tensor) -> Tensor:
        if key not in self.skip:
            return e
        gate: Any = self.skip[key]
        s = gate(*(e, g)[: len(gate.spec.inputs)])
        return self.combine[key](s) if key in self.combine else s

    def _units(self, units: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(units, x, use_reentrant=False)
        return units(x)


class Units(nn.Module):
    """(N, I, *S) -> (N, O, *S): convolutions in order, each with its norm, activation and dropout, then the block."""

    def __init__(self, units: Sequence[Unit], net: spec.UNet, block: Spec | None = None) -> None:
        super().__init__()
        self.units = tuple(units)
        self.block = _block(block)
        dims = net.spatial_dims
        norms = {"batch": ops.BATCH_NORM[dims], "instance": ops.INSTANCE_NORM[dims]}
        for unit in self.units:
            self.add_module(unit.conv, _conv(unit, dims))
            if unit.norm:
                self.add_module(f"norm{unit.part}", norms[unit.norm](unit.outputs))
            if unit.activation == "prelu":
                self.add_module(f"activation{unit.part}", nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = getattr(self, unit.conv)(x)
            x = getattr(self, f"norm{unit.part}")(x) if unit.norm else x
            if unit.activation == "prelu":
                x = getattr(self, f"activation{unit.part}")(x)
            elif unit.activation:
                x = F.relu(x, inplace=True)   # neither a norm nor a convolution needs what it gave
            x = F.dropout(x, unit.dropout, self.training) if unit.dropout else x
        return self.block(x)


def _conv(unit: Unit, dims: int) -> nn.Module:
    if not unit.transposed:
        return ops.CONV[dims](unit.inputs, unit.outputs, unit.kernel, unit.stride, unit.padding)
    sizes = zip(unit.kernel, unit.stride, unit.padding, strict=True)
    missing = tuple(step + 2 * p - k for k, step, p in sizes)   # to sizes times the stride
    return ops.TRANSPOSED[dims](unit.inputs, unit.outputs, unit.kernel, unit.stride, unit.padding, missing)


def _block(block: Spec | None) -> nn.Module:
    return registry.body(block, "torch")(**block.config()) if block else nn.Identity()


def _fold(module: nn.Module, name: str, norm: Any) -> None:
    """Fold a module's batch norm into the convolution before it: norm1 follows conv1, psi_norm follows psi."""
    before = name.replace("norm", "conv"), name.replace("norm", "transpose"), name.removesuffix("_norm")
    kinds = tuple(ops.CONV.values()), tuple(ops.TRANSPOSED.values())
    for each in before:
        conv: Any = getattr(module, each, None)
        if isinstance(conv, kinds[0] + kinds[1]):
            fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, kinds[1]))   # type: ignore[type-var]
            setattr(module, each, fused)
            setattr(module, name, nn.Identity())
            return
