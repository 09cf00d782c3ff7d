"""Linear maps and convolutions, in PyTorch. Tensors are (N, C, *S)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...contract import Array
from .. import guard
from ..common.torch import move_last
from ..guard import EXACT, is_plain
from ..resizing.torch import repeat

CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CONV_TRANSPOSE: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
FEW = 256   # number of pixels in the batch below which computing a wider kernel costs more time than it saves


class Linear(nn.Linear):
    """A linear map of the channels, for any number of spatial axes: (N, I, *S) -> (N, O, *S), also (N, I) -> (N, O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of x (N, I, *S)."""
        if self.out_features == 1:
            return linear_to_one(x, self.weight, self.bias)
        return move_last(super().forward(x.movedim(1, -1)))


def linear_to_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the linear map of the channels to one: (N, I, *S) -> (N, 1, *S); weight: (1, I), bias: (1,) or None.

    In eager mode on a CPU it is a sum of products: a matrix product takes twice as long, because it copies x as
    channels last, and for thousands of channels its rounding error is five times as large.
    """
    last = x.movedim(1, -1)
    if not guard.is_eager_on_cpu(x):
        return move_last(F.linear(last, weight, bias))
    y = move_last((last * weight[0]).sum(-1, keepdim=True))
    return y if bias is None else y + bias


class _Repeating:
    """Mixin for a convolution after nearest upsampling by `repeat`, per axis: (N, I, *S) -> (N, O, *S * repeat).

    It equals a transposed convolution with stride r = `repeat`, whose kernel is the kernel convolved with r ones. That
    takes (k + r - 1)^n / r^n products per output in place of k^n (4 in place of 9 for k = 3, r = 2, in 2-D) and does
    not write the upsampled tensor: half the time on a CPU. The wider kernel is computed at each call. The plain form is
    used for few pixels, in graphs, which may be run at other sizes, in half precision, where the sums of kernel
    elements would be rounded, and on other devices, where the gain has not been measured.
    """

    repeat: tuple[int, ...]

    def forward(self: Any, x: Tensor) -> Tensor:
        """Return the convolution of x after upsampling."""
        if not is_plain(x) or x.device.type != "cpu" or x.dtype not in EXACT or x.numel() // x.shape[1] < FEW:
            return super().forward(repeat(x, self.repeat))   # type: ignore[misc]
        transpose = CONV_TRANSPOSE[len(self.repeat)]
        return transpose(x, self.widened(), self.bias, stride=self.repeat, padding=self.padding)

    def widened(self: Any) -> Tensor:
        """Return the kernel of the transposed convolution: (O, I, *k) -> (I, O, *(k + r - 1))."""
        ones, sizes = _positions(self.kernel_size, self.repeat)
        positions = torch.tensor(ones, dtype=self.weight.dtype, device=self.weight.device)
        flat = self.weight.flatten(2).flatten(0, 1) @ positions
        return flat.unflatten(1, sizes).unflatten(0, self.weight.shape[:2]).transpose(0, 1)

    def as_transposed(self: Any) -> nn.Module:
        """Return an equivalent nn.ConvTranspose layer, for inference."""
        dims = len(self.repeat)
        kernel = self.widened()
        conv: Any = TRANSPOSED[dims](self.in_channels, self.out_channels, kernel.shape[2:], self.repeat, self.padding)
        conv.weight, conv.bias = nn.Parameter(kernel, False), nn.Parameter(self.bias, False)
        return conv.eval()


@lru_cache   # of arrays, because a tensor created under FakeTensorMode must not be cached
def _positions(kernel: tuple[int, ...], repeat: tuple[int, ...]) -> tuple[Array, list[int]]:
    """Return the matrix of 0 and 1 that maps a flat kernel to the flat kernel of `widened`, and the latter's sizes.

    kernel: sizes of the kernel, per axis. repeat: factors of the upsampling.
    """
    ones = np.ones((1, 1), np.float32)
    for size, repeats in zip(kernel, repeat, strict=True):
        shift = np.arange(size + repeats - 1) + np.arange(size)[:, None]
        ones = np.kron(ones, ((shift >= size - 1) & (shift < size - 1 + repeats)).astype(np.float32))
    return ones, [k + r - 1 for k, r in zip(kernel, repeat, strict=True)]


class RepeatingConv1d(_Repeating, nn.Conv1d):
    """Nearest upsampling by `repeat` followed by a convolution, in 1-D: (N, I, S) -> (N, O, S * repeat)."""


class RepeatingConv2d(_Repeating, nn.Conv2d):
    """Nearest upsampling by `repeat` followed by a convolution, in 2-D: (N, I, *S) -> (N, O, *S * repeat)."""


class RepeatingConv3d(_Repeating, nn.Conv3d):
    """Nearest upsampling by `repeat` followed by a convolution, in 3-D: (N, I, *S) -> (N, O, *S * repeat)."""


REPEATING: dict[int, Any] = {1: RepeatingConv1d, 2: RepeatingConv2d, 3: RepeatingConv3d}

fx.wrap("linear_to_one")   # calls from this file too, as ops/torch.py does with calls from blocks
fx.wrap("repeat")
