"""The residual network of the demo in PyTorch, its training and its predictions."""

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
        super().__init__(args := spec.ResNet(channels, block, options or {}, classes))
        self.stem = _conv(1, args.channels)
        self.stem_norm = nn.BatchNorm2d(args.channels)
        self.stage1, self.stage2 = Stage(**args.stage.config()), Stage(**args.stage.config())
        self.head = nn.Linear(args.channels * spec.GRID**2, args.classes)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients of the last block for x (N, 1, 8, 8)."""
        self.check_inputs(x)
        x = ops.relu(self.stem_norm(self.stem(x)))
        return self.stage2.attention(self.stage1(x))

    def forward(self, x: Tensor) -> Tensor:
        self.check_inputs(x)
        x = ops.relu(self.stem_norm(self.stem(x)))
        x = self.stage2(self.stage1(x))
        pooled = F.avg_pool2d(x, spec.SIZE // spec.GRID)    # (N, C, 4, 4)
        return self.head(pooled.flatten(1))


class Stage(SpecModule):
    """(N, C, H, W) -> (N, C, H, W); arguments and errors as `spec.Stage`."""

    spec: spec.Stage

    def __init__(self, channels: int, block: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(args := spec.Stage(channels, block, options or {}))
        self.conv1, self.norm1 = _conv(args.channels, args.channels), nn.BatchNorm2d(args.channels)
        self.conv2, self.norm2 = _conv(args.channels, args.channels), nn.BatchNorm2d(args.channels)
        self.block: Any = nn.Identity()
        if args.block:
            self.block = registry.create(args.block, args.channels, backend="torch", **args.options)
        self.reset_parameters()

    def attention(self, x: Tensor) -> Tensor:
        """Return the coefficients of the block for x (N, C, H, W)."""
        return self.block.attention(*self.block_inputs(x))

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x + self.block(*self.block_inputs(x)))

    def block_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs of the block: the residual branch, and x if the block takes a gating signal."""
        self.check_inputs(x)
        h = ops.relu(self.norm1(self.conv1(x)))
        b = self.norm2(self.conv2(h))
        return (b, x)[: self.spec.block_input_count]


def create_seeded(seed: int, *args: Any) -> ResNet:
    """Return `ResNet(*args)` with random weights of this seed, without changing PyTorch's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(*args)


@contextmanager
def one_thread() -> Iterator[None]:
    """Set PyTorch to one thread in the context: more threads make such small networks up to ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit(net: ResNet, batches: Iterable[tuple[Array, Any]], rate: float, momentum: float) -> Iterator[float]:
    """Train with SGD, one step for each batch (images, labels). Yield the mean cross-entropy of each step."""
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
    """Return the logits, (N, K), of images (N, 1, 8, 8) in evaluation mode."""
    return to_array(net.eval()(to_tensor(images, net)))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution without bias that preserves the size."""
    return nn.Conv2d(inputs, outputs, spec.KERNEL, padding="same", bias=False)
