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
    """The residual network in PyTorch: images (N, 1, 8, 8) to logits (N, K). Arguments and errors as `spec.ResNet`."""

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
        """Return the attention coefficients of the block in stage2 for images x (N, 1, 8, 8)."""
        self.check_inputs(x)
        x = ops.relu(self.stem_norm(self.stem(x)))
        return self.stage2.attention(self.stage1(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) for images x (N, 1, 8, 8)."""
        self.check_inputs(x)
        x = ops.relu(self.stem_norm(self.stem(x)))
        x = self.stage2(self.stage1(x))
        pooled = F.avg_pool2d(x, spec.SIZE // spec.GRID)    # (N, C, 4, 4)
        return self.head(pooled.flatten(1))


class Stage(SpecModule):
    """A residual stage in PyTorch, (N, C, H, W) to (N, C, H, W). Arguments and errors as `spec.Stage`."""

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
        """Return the attention coefficients of the block for x (N, C, H, W)."""
        return self.block.attention(*self.block_inputs(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(x + block(...)) for x (N, C, H, W)."""
        return ops.relu(x + self.block(*self.block_inputs(x)))

    def block_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the block's inputs (N, C, H, W) for x: the residual branch, and x if it takes a gating signal."""
        self.check_inputs(x)
        h = ops.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(h))
        return (residual, x)[: self.spec.block_input_count]


def create_seeded(seed: int, *args: Any) -> ResNet:
    """Return `ResNet(*args)` with random weights from `seed`. PyTorch's random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(*args)


@contextmanager
def one_thread() -> Iterator[None]:
    """Set PyTorch to one thread in the `with` block, since more make such small networks up to ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit(net: ResNet, batches: Iterable[tuple[Array, Any]], rate: float, momentum: float) -> Iterator[float]:
    """Train `net` in place with SGD, one step for each batch. Yield the mean cross-entropy of each step.

    Args:
        net: the network.
        batches: images (N, 1, 8, 8) and labels (N,).
        rate: the learning rate.
        momentum: the momentum of SGD.
    """
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
    """Return the logits, (N, K), of images (N, 1, 8, 8). The network is set to evaluation mode and stays in it."""
    return to_array(net.eval()(to_tensor(images, net)))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution from `inputs` to `outputs` channels, without bias, that preserves the spatial size."""
    return nn.Conv2d(inputs, outputs, spec.KERNEL, padding="same", bias=False)
