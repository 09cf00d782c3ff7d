"""Networks that blocks are timed in: ResNet-50 with a block at the end of every residual branch.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385v1, Table 1, with the
stride in the 3x3 convolution, as in torchvision. The attention block is before the addition, as in SE, CBAM and ECA.
A block whose forward takes a `shortcut` also does the addition and the relu.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from itertools import pairwise
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS: Final = (64, 256, 512, 1024, 2048)   # of the stem and of each stage's output
DEPTHS: Final = (3, 4, 6, 3)                 # bottlenecks in each stage
MakeBlock = Callable[[int], nn.Module]       # channels -> a block


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution from `inputs` to `outputs` channels, with "same" padding, and a batch norm.

    kernel: size of the kernel. stride: stride of the convolution.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Bottleneck(nn.Module):
    """A residual block of ResNet-50 with an attention block at its end: (N, C, H, W) -> (N, O, H / stride, W / stride).

    Args:
        inputs: C.
        outputs: O.
        stride: stride of the 3x3 convolution and the shortcut.
        attention: creates the attention block for a number of channels.

    """

    def __init__(self, inputs: int, outputs: int, stride: int, attention: MakeBlock) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1, self.conv2 = conv(inputs, width, 1), conv(width, width, 3, stride)
        self.conv3 = conv(width, outputs, 1)
        self.put(attention(outputs))
        self.shortcut = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, stride)

    def put(self, attention: nn.Module) -> None:
        """Set the attention block. If its forward takes a `shortcut`, the block also does the addition and the relu."""
        self.attention = attention
        self.takes_shortcut = "shortcut" in signature(attention.forward).parameters   # not in forward, which is timed

    def forward(self, x: Tensor) -> Any:
        """Return the output for x (N, C, H, W)."""
        y = F.relu(self.conv1(x), inplace=True)
        y = F.relu(self.conv2(y), inplace=True)
        y = self.conv3(y)
        if self.takes_shortcut:
            return self.attention(y, self.shortcut(x), act="relu")
        return F.relu(self.attention(y) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50 with an attention block in every residual block: (N, 3, H, W) -> (N, 1000).

    attention: creates the attention block for a number of channels.
    """

    def __init__(self, attention: MakeBlock = lambda channels: nn.Identity()) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, WIDTHS[0], 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))
        blocks: list[nn.Module] = []
        for stage, ((inputs, outputs), depth) in enumerate(zip(pairwise(WIDTHS), DEPTHS, strict=True)):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(Bottleneck(outputs if i else inputs, outputs, stride, attention))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], 1000)

    def forward(self, x: Tensor) -> Any:
        """Return the logits (N, 1000) for images x (N, 3, H, W)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
