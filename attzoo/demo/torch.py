"""The demo's network in PyTorch, its training and its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import registry
from ..adapters.torch import to_array, to_tensor
from ..blocks.torch import SpecModule
from ..contract import Array
from ..ops import torch as ops
from . import spec


class ResNet(SpecModule):
    """(N, 1, 8, 8) -> (N, K); arguments and errors as `spec.ResNet`."""

    spec: spec.ResNet

    def __init__(
        self, channels: int, block: str | None = None, options: Mapping[str, Any] | None = None, classes: int = 10
    ) -> None:
        super().__init__(it := spec.ResNet(channels, block, options or {}, classes))
        self.stem = _conv(1, it.channels)
        self.stem_norm = nn.BatchNorm2d(it.channels)
        self.stage1, self.stage2 = Stage(**it.stage.config()), Stage(**it.stage.config())
        self.head = nn.Linear(it.channels * spec.GRID**2, it.classes)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> the last block's coefficients."""
        self.check_inputs(x)
        x = ops.relu(self.stem_norm(self.stem(x)))
        return self.stage2.attention(self.stage1(x))

    def forward(self, x: Tensor) -> Tensor:
        self.check_inputs(x)
        x = ops.relu(self.stem_norm(self.stem(x)))
        x = self.stage2(self.stage1(x))
        cells = F.avg_pool2d(x, spec.SIZE // spec.GRID)    # (N, C, 4, 4)
        return self.head(cells.flatten(1))


class Stage(SpecModule):
    """(N, C, H, W) -> (N, C, H, W); arguments and errors as `spec.Stage`."""

    spec: spec.Stage

    def __init__(self, channels: int, block: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(it := spec.Stage(channels, block, options or {}))
        self.conv1, self.norm1 = _conv(it.channels, it.channels), nn.BatchNorm2d(it.channels)
        self.conv2, self.norm2 = _conv(it.channels, it.channels), nn.BatchNorm2d(it.channels)
        self.block: Any = nn.Identity()
        if it.block:
            self.block = registry.create(it.block, it.channels, backend="torch", **it.options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the block's coefficients."""
        return self.block.attention(*self.branch(x))

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x + self.block(*self.branch(x)))

    def branch(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) -> what the block takes: the branch, and the shortcut where it wants a gating signal."""
        self.check_inputs(x)
        h = ops.relu(self.norm1(self.conv1(x)))
        b = self.norm2(self.conv2(h))
        return (b, x)[: self.spec.taken]


def start(seed: int, *args: Any) -> ResNet:
    """ResNet(*args) whose draw depends on the seed alone; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(*args)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread inside: in nets this small they wait for each other, often ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit(net: ResNet, batches: Iterable[tuple[Array, Any]], rate: float, momentum: float) -> Iterator[float]:
    """Train on (images, labels), one step of SGD each; yields each step's mean cross-entropy."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum)
    net.train()
    for images, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(to_tensor(images, net)), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def predict(net: ResNet, images: Array) -> Array:
    """(N, 1, 8, 8) -> (N, K), outside training."""
    return to_array(net.eval()(to_tensor(images, net)))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, spec.KERNEL, padding="same", bias=False)
