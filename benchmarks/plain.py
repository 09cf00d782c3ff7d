"""The Attention U-Net of LeeJunHyun in plain torch.nn, which attzoo's U-Net is timed against.

Source: LeeJunHyun/Image_Segmentation@7a6e5f9, network.py, AttU_Net.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3x3 convolutions, each with batch norm and relu."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def up_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Return nearest-neighbour upsampling by 2 and a 3x3 convolution with batch norm and relu."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def projection(inputs: int, outputs: int) -> nn.Sequential:
    """Return a 1x1 convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))


class Gate(nn.Module):
    """The additive attention gate, for a skip connection x and a gating signal g with as many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g, self.x = projection(channels, channels // 2), projection(channels, channels // 2)
        self.psi = nn.Sequential(*projection(channels // 2, 1), nn.Sigmoid())
        self.relu = nn.ReLU(inplace=True)

    def forward(self, g: Tensor, x: Tensor) -> Any:
        """Return x (N, C, H, W) times the coefficients (N, 1, H, W), computed from g and x of equal sizes."""
        return x * self.psi(self.relu(self.g(g) + self.x(x)))


class AttUNet(nn.Module):
    """The network: (N, C, H, W) -> (N, K, H, W), where H and W are multiples of 2^depth."""

    def __init__(self, inputs: int = 3, classes: int = 1, channels: Sequence[int] = (64, 128, 256, 512, 1024)) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.pool = nn.MaxPool2d(2, 2)
        self.down = nn.ModuleList(
            [
                double_conv(inputs, channels[0]),
                *(double_conv(above, channels_of_level) for above, channels_of_level in pairs),
            ]
        )
        self.up = nn.ModuleList(up_conv(channels_of_level, a) for a, channels_of_level in pairs)
        self.gate = nn.ModuleList(Gate(a) for a, _ in pairs)
        self.merge = nn.ModuleList(double_conv(2 * a, a) for a, _ in pairs)
        self.head = nn.Conv2d(channels[0], classes, 1)

    def forward(self, x: Tensor) -> Any:
        """Return the output (N, K, H, W) for x (N, C, H, W)."""
        skips = []
        for i, conv in enumerate(self.down):
            x = conv(self.pool(x) if i else x)
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = self.up[i](x)
            x = self.merge[i](torch.cat([self.gate[i](g=x, x=skips[i]), x], dim=1))
        return self.head(x)


def canonical(net: AttUNet) -> dict[str, str]:
    """Return the keys of the network's state dict by attzoo's canonical names of the weights."""
    convs = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}
    parts = {"down": ("encoder", convs), "merge": ("decoder", convs), "up": ("up", {"1": "conv", "2": "norm"})}
    gate = {"x.0": "skip", "x.1": "skip_norm", "g.0": "gating", "g.1": "gating_norm"}
    parts["gate"] = "skip", gate | {"psi.0": "psi", "psi.1": "psi_norm"}
    keys = {}
    for key in net.state_dict():
        path, _, attribute = key.rpartition(".")
        attribute = {"running_mean": "mean", "running_var": "var"}.get(attribute, attribute)
        if path != "head":
            part, level, layer = path.split(".", 2)
            path = f"{parts[part][0]}.{level}.{parts[part][1][layer]}"
        if attribute != "num_batches_tracked":
            keys[f"{path}.{attribute}"] = key
    return keys
