"""The Attention U-Net of LeeJunHyun in plain torch.nn, as written without attzoo: what ours is timed against.

Re-stated from LeeJunHyun/Image_Segmentation@7a6e5f9, network.py, AttU_Net.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and relu."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def up(inputs: int, outputs: int) -> nn.Sequential:
    """Every pixel four times, then a 3x3 convolution."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def projection(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))


class Gate(nn.Module):
    """The additive gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g, self.x = projection(channels, channels // 2), projection(channels, channels // 2)
        self.psi = nn.Sequential(*projection(channels // 2, 1), nn.Sigmoid())
        self.relu = nn.ReLU(inplace=True)

    def forward(self, g: Tensor, x: Tensor) -> Any:
        return x * self.psi(self.relu(self.g(g) + self.x(x)))


class AttUNet(nn.Module):
    """(N, C, H, W) -> (N, K, H, W), H and W multiples of 2^depth."""

    def __init__(self, inputs: int = 3, classes: int = 1, channels: Sequence[int] = (64, 128, 256, 512, 1024)) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.pool = nn.MaxPool2d(2, 2)
        self.down = nn.ModuleList([double(inputs, channels[0]), *(double(a, b) for a, b in pairs)])
        self.up = nn.ModuleList(up(b, a) for a, b in pairs)
        self.gate = nn.ModuleList(Gate(a) for a, _ in pairs)
        self.merge = nn.ModuleList(double(2 * a, a) for a, _ in pairs)
        self.head = nn.Conv2d(channels[0], classes, 1)

    def forward(self, x: Tensor) -> Any:
        skips = []
        for i, conv in enumerate(self.down):
            x = conv(self.pool(x) if i else x)
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = self.up[i](x)
            x = self.merge[i](torch.cat([self.gate[i](g=x, x=skips[i]), x], dim=1))
        return self.head(x)


def canonical(plain: AttUNet) -> dict[str, str]:
    """What attzoo calls every array -> what this network's state calls it."""
    convs = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}
    parts = {"down": ("encoder", convs), "merge": ("decoder", convs), "up": ("up", {"1": "conv", "2": "norm"})}
    gate = {"x.0": "skip", "x.1": "skip_norm", "g.0": "gating", "g.1": "gating_norm"}
    parts["gate"] = "skip", gate | {"psi.0": "psi", "psi.1": "psi_norm"}
    found = {}
    for name in plain.state_dict():
        path, _, leaf = name.rpartition(".")
        leaf = {"running_mean": "mean", "running_var": "var"}.get(leaf, leaf)
        if path != "head":
            kind, level, inner = path.split(".", 2)
            path = f"{parts[kind][0]}.{level}.{parts[kind][1][inner]}"
        if leaf != "num_batches_tracked":
            found[f"{path}.{leaf}"] = name
    return found
