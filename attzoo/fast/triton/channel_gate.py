"""SE and channel attention in Triton: y = x * s, s (N, C) by a perceptron over averages and, of the latter, maxima."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..autograd import Fused, as_dense
from . import passes, perceptron
from .perceptron import Layers

ARGUMENTS = """Tensor x, Tensor? shortcut,
Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str gate, bool relu"""


def outputs(top: bool, x: Tensor, _shortcut: Tensor | None, w1: Tensor, *_: Any) -> Sequence[Any]:
    """y and what is saved; top: whether of maxima too."""
    return torch.empty_like(x), perceptron.saved(x, len(w1), top)


def forward(top: bool, args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Squeeze, excite, scale."""
    x, shortcut, *layers, relu = args
    y, saved = to
    perceptron.forward(x, Layers(*layers), top, saved)
    passes.scale(x, saved, None, y, shortcut, relu)


def backward(
    top: bool, dy: Tensor, args: Sequence[Any], y: Tensor | None, kept: Sequence[Tensor], gradients: list[Any]
) -> None:
    """dy * x, added up, is the gradient of s; what that makes of average and maximum is added to dy * s."""
    x, _, *layers, gate, _ = args
    dx, _, *dlayers = gradients
    dy, (saved,) = passes.grad_of_product(dy, x, y, gradients), kept
    it, to = Layers._make([*layers, gate]), Layers._make([*dlayers, gate])
    found = perceptron.backward(x, dy, it, top, saved, None, to)
    passes.to_input(x, dy, dx, saved, found, top)


def kernels(name: str, top: bool) -> Fused:
    """Those of one of the two blocks."""
    both = partial(forward, top), partial(backward, top)
    return Fused(name, ARGUMENTS, 1, partial(outputs, top), *both, backward_needs_y=passes.backward_needs_y)


def call(it: Fused, block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """(N, C, *S) -> (N, C, *S)."""
    return it(block, as_dense(x), shortcut, *perceptron.layers_of(block), act == "relu", act=act)[0]
