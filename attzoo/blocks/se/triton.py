"""SE in Triton: three passes over x forward, as plainly, and four back, of ten; torch.py says what."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...ops.fused import Fused, densely
from ...ops.triton import passes, perceptron
from ...ops.triton.perceptron import Kept, Layers


def outputs(x: Tensor, _shortcut: Tensor | None, w1: Tensor, *_: Any) -> Sequence[Any]:
    """y and what is kept."""
    it = perceptron.kept(x, len(w1), top=False)
    return torch.empty_like(x), it.avg, it.hidden, it.s


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Squeeze, excite, scale."""
    x, shortcut, *layers, relu = args
    y, avg, hidden, s = to
    total, _ = passes.pool(x, top=False)
    perceptron.forward(total, None, prod(x.shape[2:]), Layers(*layers), Kept(avg, None, hidden, s))
    passes.scale(x, s, None, y, shortcut, relu)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, kept: Sequence[Tensor], gradients: list[Any]
) -> None:
    """dy * x, added up, is the gradient of s; what that makes of the average is added to dy * s."""
    x, _, *layers, _ = args
    avg, hidden, s = kept
    dx, _, *dlayers = gradients
    dy = passes.to_scaled(dy, x, y, gradients)
    ds, _ = passes.to_channels(x, dy, s, None)
    saved, to = Kept(avg, None, hidden, s), Layers._make([*dlayers, layers[-1]])
    mean, _ = perceptron.backward(ds, None, prod(x.shape[2:]), Layers(*layers), saved, to)
    passes.to_input(x, dy, dx, s, mean)


KERNELS = Fused("se", perceptron.ARGUMENTS, 3, outputs, forward, backward, rereads=passes.rereads)


def fused(block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """(N, C, *S) -> (N, C, *S)."""
    return KERNELS(block, densely(x), shortcut, *perceptron.layers_of(block), act == "relu", act=act)[0]
