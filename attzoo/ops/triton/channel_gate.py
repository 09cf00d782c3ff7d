"""SE and channel attention in Triton: y = x * s, s (N, C) by a perceptron over averages and, of the latter, maxima."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..fused import Fused, densely
from . import passes, perceptron
from .perceptron import Kept, Layers

ARGUMENTS = """Tensor x, Tensor? shortcut,
Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str gate, bool relu"""


def outputs(top: bool, x: Tensor, _shortcut: Tensor | None, w1: Tensor, *_: Any) -> Sequence[Any]:
    """y and what is kept; top: whether of maxima too."""
    return torch.empty_like(x), *(room for room in perceptron.kept(x, len(w1), top) if room is not None)


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Squeeze, excite, scale."""
    x, shortcut, *layers, relu = args
    y, it = to[0], Kept(*to[1:])
    total, tops = passes.pool(x, top=it.top is not None)
    perceptron.forward(total, tops, prod(x.shape[2:]), Layers(*layers), it)
    passes.scale(x, it.s, None, y, shortcut, relu)


def backward(dy: Tensor, args: Sequence[Any], y: Tensor | None, kept: Sequence[Tensor], gradients: list[Any]) -> None:
    """dy * x, added up, is the gradient of s; what that makes of average and maximum is added to dy * s."""
    x, _, *layers, _ = args
    dx, _, *dlayers = gradients
    dy, it = passes.to_scaled(dy, x, y, gradients), Kept(*kept)
    ds, ties = passes.to_channels(x, dy, it.s, it.top)
    to = Layers._make([*dlayers, layers[-1]])
    mean, each = perceptron.backward(ds, ties, prod(x.shape[2:]), Layers(*layers), it, to)
    passes.to_input(x, dy, dx, it.s, mean, it.top, each)


def kernels(name: str, top: bool) -> Fused:
    """Those of one of the two blocks."""
    return Fused(name, ARGUMENTS, 3 + top, partial(outputs, top), forward, backward, rereads=passes.rereads)


def call(it: Fused, block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """(N, C, *S) -> (N, C, *S)."""
    return it(block, densely(x), shortcut, *perceptron.layers_of(block), act == "relu", act=act)[0]
