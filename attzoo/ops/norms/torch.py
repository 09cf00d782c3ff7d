"""Norms with and without weights, in PyTorch. Tensors are (N, C, *S)."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .. import guard
from ..common.torch import in_dtype_of, move_last, upcast
from ..pooling.torch import expand
from .numpy import EPSILON as EPSILON
from .numpy import one_value

# torch's defaults of epsilon and momentum are those of norms/numpy.py
BATCH_NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
NORMS = tuple(BATCH_NORM.values())


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Return norm(x): (N, C, *S) -> (N, C, *S).

    Raises ValueError for batch norm in training on one value per channel, except while a graph is traced.
    """
    uses_batch = norm.training and isinstance(norm, NORMS)
    if not guard.is_traced() and uses_batch and isinstance(x, Tensor) and x.numel() == x.shape[1]:
        raise one_value(x.shape)
    return norm(x)


class LayerNorm(nn.LayerNorm):
    """Layer norm of the channels at each position: (N, C, *S) -> (N, C, *S), also (N, C) -> (N, C)."""

    def __init__(self, channels: int, epsilon: float = EPSILON, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(channels, epsilon, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x (N, C, *S) in the dtype of x."""
        y = move_last(super().forward(x.movedim(1, -1)))
        return in_dtype_of(x, y)   # under autocast on CUDA, F.layer_norm returns float32


class GroupNorm(nn.GroupNorm):
    """Group norm of consecutive channels, which accepts a single pixel: (N, C, *S) -> (N, C, *S)."""

    def __init__(self, groups: int, channels: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(groups, channels, EPSILON, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x (N, C, *S) in the dtype of x."""
        # ONNX Runtime computes the variance as E[x^2] - E[x]^2, which is inexact for a large mean: subtract it first.
        if guard.is_exporting():
            means = x.unflatten(1, (self.num_groups, -1)).flatten(2).mean(2)   # (N, groups)
            x = x - expand(means.repeat_interleave(self.num_channels // self.num_groups, 1), x)
        y = torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)
        return in_dtype_of(x, y)   # under autocast on CUDA, torch.group_norm returns float32


class InstanceNorm(nn.Module):
    """Instance norm without weights, which accepts a single pixel: (N, C, *S) -> (N, C, *S)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x."""
        return torch.instance_norm(x, None, None, None, None, True, 0.0, EPSILON, torch.backends.cudnn.enabled)


def spatial_norm(x: Tensor, order: int, epsilon: float) -> Tensor:
    """Return the norm over the spatial axes: (N, C, *S) -> (N, C), float32 for half precision.

    order: 1 for the sum of magnitudes, 2 for the root of the sum of squares plus `epsilon`. A sum of squares may
    overflow in float16.
    """
    z, space = upcast(x), tuple(range(2, x.ndim))
    return z.abs().sum(space) if order == 1 else (z.square().sum(space) + epsilon).sqrt()


def over_channel_norm(e: Tensor, order: int, epsilon: float) -> Tensor:
    """Return e divided by its norm over channels, per channel: (N, C) -> (N, C).

    order: 1 for the mean of magnitudes plus `epsilon`, 2 for the root of the mean of squares plus `epsilon`.
    """
    if order == 1:
        return e / (e.abs().mean(1, keepdim=True) + epsilon)
    return e / (e.square().mean(1, keepdim=True) + epsilon).sqrt()


def relative_deviation(x: Tensor, epsilon: float, unbiased: bool) -> Tensor:
    """Return (x - mean)^2 / (variance + epsilon), with mean and variance over the spatial axes: (N, C, *S) -> the same.

    unbiased: whether the variance is the sum of squares divided by n - 1 instead of n, the number of positions. For
    n = 1 it is 0. Half precision is computed in float32, because squares may overflow float16.
    """
    space = tuple(range(2, x.ndim))
    z = upcast(x)
    d = (z - z.mean(space, keepdim=True)).square()
    n = d.new_full((), prod(x.shape[2:]) - int(unbiased)).clamp(min=1)   # max() would fix the sizes of a graph
    return in_dtype_of(x, d / (d.sum(space, keepdim=True) / n + epsilon))
