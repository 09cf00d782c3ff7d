"""Fused SE and channel attention: y = x * s, where a perceptron computes s (N, C) from averages and maxima over space.

Only channel attention uses maxima (`top`).
"""

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
    """Allocate y and the saved tensor; `top`: whether maxima are used."""
    return torch.empty_like(x), perceptron.saved(x, len(w1), top)


def forward(top: bool, args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Pool, compute the coefficients, and scale."""
    x, shortcut, *layers, relu = args
    y, saved = to
    perceptron.forward(x, Layers(*layers), top, saved)
    passes.scale(x, saved, None, y, shortcut, relu)


def backward(
    top: bool, dy: Tensor, args: Sequence[Any], y: Tensor | None, kept: Sequence[Tensor], gradients: list[Any]
) -> None:
    """Compute the gradient of s, the sum of dy * x, then those of the pools, and add the latter to dy * s."""
    x, _, *layers, gate, _ = args
    dx, _, *dlayers = gradients
    dy, (saved,) = passes.grad_of_product(dy, x, y, gradients), kept
    weights, weight_grads = Layers._make([*layers, gate]), Layers._make([*dlayers, gate])
    pool_grads = perceptron.backward(x, dy, weights, top, saved, None, weight_grads)
    passes.to_input(x, dy, dx, saved, pool_grads, top)


def kernels(name: str, top: bool) -> Fused:
    """Return the kernels of SE (top=False) or channel attention (top=True)."""
    both = partial(forward, top), partial(backward, top)
    return Fused(name, ARGUMENTS, 1, partial(outputs, top), *both, backward_needs_y=passes.backward_needs_y)


def call(fused: Fused, block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """Return the block's output for x (N, C, *S), with an optional shortcut and activation."""
    return fused(block, as_dense(x), shortcut, *perceptron.layers_of(block), act == "relu", act=act)[0]
