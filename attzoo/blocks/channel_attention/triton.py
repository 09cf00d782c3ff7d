"""Channel attention in Triton: x is read twice and y written once, in place of three reads; torch.py says what."""

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
    return torch.empty_like(x), *perceptron.kept(x, len(w1), top=True)


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Squeeze, excite, scale."""
    x, shortcut, *layers, relu = args
    y, *kept = to
    total, tops = passes.pool(x, top=True)
    perceptron.forward(total, tops, prod(x.shape[2:]), Layers(*layers), Kept(*kept))
    passes.scale(x, kept[-1], None, y, shortcut, relu)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, kept: Sequence[Tensor], gradients: list[Any]
) -> None:
    """dy * x, added up, is the gradient of s; what that makes of average and maximum is added to dy * s."""
    x, _, *layers, _ = args
    dx, _, *dlayers = gradients
    dy, it = passes.to_scaled(dy, x, y, gradients), Kept(*kept)
    ds, ties = passes.to_channels(x, dy, it.s, it.top)
    to = Layers._make([*dlayers, layers[-1]])
    mean, each = perceptron.backward(ds, ties, prod(x.shape[2:]), Layers(*layers), it, to)
    passes.to_input(x, dy, dx, it.s, mean, it.top, each)


KERNELS = Fused(
    "channel_attention", perceptron.ARGUMENTS, 4, outputs, forward, backward, rereads=passes.rereads
)


def fused(block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """(N, C, *S) -> (N, C, *S)."""
    return KERNELS(block, densely(x), shortcut, *perceptron.layers_of(block), act == "relu", act=act)[0]
