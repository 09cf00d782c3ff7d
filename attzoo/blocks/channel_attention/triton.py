"""Channel attention in Triton: x is read twice and y written once, in place of four reads; torch.py says what."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...ops.fused import Fused, densely
from ...ops.triton import passes, perceptron
from ...ops.triton.common import alike
from ...ops.triton.perceptron import Kept, Layers


def outputs(x: Tensor, w1: Tensor, *_: Any) -> Sequence[Any]:
    """y and what is kept."""
    return torch.empty_like(x), *perceptron.kept(x, len(w1), top=True)


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Squeeze, excite, scale."""
    x, *layers = args
    y, *kept = to
    total, tops = passes.pool(x, top=True)
    perceptron.forward(total, tops, prod(x.shape[2:]), Layers(*layers), Kept(*kept))
    passes.scale(x, kept[-1], None, y)


def backward(dy: Tensor, args: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any]) -> None:
    """dy * x, added up, is the gradient of s; what that makes of average and maximum is added to dy * s."""
    x, *layers = args
    dx, *dlayers = gradients
    dy, it = alike(dy, x), Kept(*kept)
    ds, ties = passes.to_channels(x, dy, it.s, it.top)
    to = Layers._make([*dlayers, layers[-1]])
    mean, each = perceptron.backward(ds, ties, prod(x.shape[2:]), Layers(*layers), it, to)
    passes.to_input(x, dy, dx, it.s, mean, it.top, each)


ARGUMENTS = "Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str gate"
KERNELS = Fused("channel_attention", ARGUMENTS, 4, outputs, forward, backward)


def fused(block: Any, x: Tensor) -> Tensor:
    """(N, C, *S) -> (N, C, *S)."""
    squeeze, excite = block.squeeze, block.excite
    layers = squeeze.weight, squeeze.bias, excite.weight, excite.bias
    return KERNELS(block, densely(x), *layers, block.spec.gate)[0]
