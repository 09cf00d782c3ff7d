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
Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str gate, str act, bool relu"""


def outputs(top: bool, x: Tensor, _shortcut: Tensor | None, w1: Tensor, *_: Any) -> Sequence[Any]:
    """Allocate y (N, C, *S) and the saved tensor of perceptron.py, for the operator's arguments, see `ARGUMENTS`.

    top: whether maxima are used.
    """
    return torch.empty_like(x), perceptron.saved(x, len(w1), top)


def forward(top: bool, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Pool x, compute the coefficients, and write the tensors in `outputs`: y and the saved tensor.

    top: whether maxima are used. args: the operator's arguments, see `ARGUMENTS`.
    """
    x, shortcut, *layers, relu = args
    y, saved = outputs
    perceptron.forward(x, Layers(*layers), top, saved)
    passes.scale(x, saved, None, y, shortcut, relu)


def backward(
    top: bool, dy: Tensor, args: Sequence[Any], y: Tensor | None, saved_tensors: Sequence[Tensor], gradients: list[Any]
) -> None:
    """Write the gradients of x and of the weights into the tensors in `gradients`.

    The gradient of s is the sum of dy * x. That of x is dy * s plus the gradients of the pools.

    Args:
        top: whether maxima are used.
        dy: gradient of y.
        args: the operator's arguments, see `ARGUMENTS`.
        y: the output, None if `backward_needs_y` is false.
        saved_tensors: those that `forward` wrote after y.
        gradients: one tensor to write for each input and parameter, or None.

    """
    x, _, *layers, gate, act, _ = args
    dx, _, *dlayers = gradients
    dy, (saved,) = passes.grad_of_product(dy, x, y, gradients), saved_tensors
    weights, weight_grads = Layers._make([*layers, gate, act]), Layers._make([*dlayers, gate, act])
    pool_grads = perceptron.backward(x, dy, weights, top, saved, None, weight_grads)
    passes.to_input(x, dy, dx, saved, pool_grads, top)


def kernels(name: str, top: bool) -> Fused:
    """Return the operator of SE (top=False) or of channel attention (top=True), under the name attzoo::`name`."""
    passes_of_block = partial(forward, top), partial(backward, top)
    return Fused(name, ARGUMENTS, 1, partial(outputs, top), *passes_of_block, backward_needs_y=passes.backward_needs_y)


def call(fused: Fused, block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """Return act(block(x) + shortcut) for x (N, C, *S), computed by the operator `fused`, which `kernels` returned."""
    return fused(block, as_dense(x), shortcut, *perceptron.layers_of(block), act == "relu", act=act)[0]
