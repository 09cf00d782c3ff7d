"""SE in Triton: x is read twice and y written once, in place of three reads; torch.py says what."""

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
    it = perceptron.kept(x, len(w1), top=False)
    return torch.empty_like(x), it.avg, it.hidden, it.s


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Squeeze, excite, scale."""
    x, *layers = args
    y, avg, hidden, s = to
    total, _ = passes.pool(x, top=False)
    perceptron.forward(total, None, prod(x.shape[2:]), Layers(*layers), Kept(avg, None, hidden, s))
    passes.scale(x, s, None, y)


def backward(dy: Tensor, args: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any]) -> None:
    """dy * x, added up, is the gradient of s; what that makes of the average is added to dy * s."""
    x, *layers = args
    avg, hidden, s = kept
    dx, *dlayers = gradients
    dy = alike(dy, x)
    ds, _ = passes.to_channels(x, dy, s, None)
    saved, to = Kept(avg, None, hidden, s), Layers._make([*dlayers, layers[-1]])
    mean, _ = perceptron.backward(ds, None, prod(x.shape[2:]), Layers(*layers), saved, to)
    passes.to_input(x, dy, dx, s, mean)


KERNELS = Fused("se", "Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str gate", 3, outputs, forward, backward)


def fused(block: Any, x: Tensor) -> Tensor:
    """(N, C, *S) -> (N, C, *S)."""
    squeeze, excite = block.squeeze, block.excite
    layers = squeeze.weight, squeeze.bias, excite.weight, excite.bias
    return KERNELS(block, densely(x), *layers, block.spec.gate)[0]
