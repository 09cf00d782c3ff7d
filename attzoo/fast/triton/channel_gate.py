"""Fused channel gates: y = x * s, where a block computes s (N, C) from statistics of the channels over space.

SE and channel attention compute s by the perceptron of perceptron.py. Other blocks describe their own computation by a
`Coefficients`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd import Fused, as_dense
from . import passes, passes_backward, perceptron, perceptron_backward
from .perceptron import Layers


def _to_input(
    uses_maxima: bool, x: Tensor, dy: Tensor, dx: Tensor, saved: Tensor, statistics: Tensor, _args: Sequence[Any]
) -> None:
    """Write the gradient of x for averages and, if `uses_maxima`, maxima over space."""
    passes_backward.to_input(x, dy, dx, saved, statistics, uses_maxima)


class Coefficients(NamedTuple):
    """How a block computes s.

    schema: its weights and options, as part of the argument list of the operator; `args` below are their values.
    saved: saved(x, *args) allocates the tensor that is saved for the backward pass. It begins with s, (N, C).
    forward: forward(x, args, saved) writes `saved`.
    backward: backward(x, dy, args, saved, gradients) writes the gradients of the weights into the tensors `gradients`,
        and returns those of the statistics, which `to_input` takes. The gradient of s is the sum of dy * x over space.
    to_input: to_input(x, dy, dx, saved, statistics, args) writes the gradient of x into dx: dy * s plus that from the
        statistics, which by default are averages.
    """

    schema: str
    saved: Callable[..., Tensor]
    forward: Callable[[Tensor, Sequence[Any], Tensor], None]
    backward: Callable[[Tensor, Tensor, Sequence[Any], Tensor, Sequence[Any]], Tensor]
    to_input: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Sequence[Any]], None] = partial(_to_input, False)


def outputs(s: Coefficients, x: Tensor, _shortcut: Tensor | None, *args: Any) -> Sequence[Any]:
    """Allocate y (N, C, *S) and the saved tensor, for the operator's arguments, see `kernels`.

    s: how the block computes its coefficients.
    """
    return torch.empty_like(x), s.saved(x, *args[:-1])


def forward(s: Coefficients, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Compute the coefficients, and write the tensors in `outputs`: y and the saved tensor.

    s: how the block computes its coefficients. args: the operator's arguments, see `kernels`.
    """
    x, shortcut, *own_args, relu = args
    y, saved = outputs
    s.forward(x, own_args, saved)
    passes.scale(x, saved, None, y, shortcut, relu)


def backward(
    s: Coefficients, dy: Tensor, args: Sequence[Any], y: Tensor | None, saved_tensors: Sequence[Tensor],
    gradients: list[Any],
) -> None:   # fmt: skip
    """Write the gradients of x and of the weights into the tensors in `gradients`.

    Args:
        s: how the block computes its coefficients.
        dy: gradient of y.
        args: the operator's arguments, see `kernels`.
        y: the output, None if no relu follows.
        saved_tensors: the tensor that `forward` wrote after y.
        gradients: one tensor to write for each input and parameter, or None.
    """
    x, _, *own_args, _ = args
    dx, _, *weight_grads = gradients
    dy, (saved,) = passes_backward.grad_of_product(dy, x, y, gradients), saved_tensors
    s.to_input(x, dy, dx, saved, s.backward(x, dy, own_args, saved, weight_grads), own_args)


def kernels(name: str, s: Coefficients) -> Fused:
    """Return the operator attzoo::`name` of a block whose coefficients are computed by `s`.

    Its arguments are x, the shortcut or None, those of `s`, and `relu`.
    """
    arguments = f"Tensor x, Tensor? shortcut, {s.schema}, bool relu"
    passes_of_block = partial(outputs, s), partial(forward, s), partial(backward, s)
    return Fused(name, arguments, 1, *passes_of_block, backward_needs_y=passes_backward.backward_needs_y)


def call(
    fused: Fused,
    arguments: Callable[[Any], Sequence[Any]],
    block: Any,
    x: Tensor,
    shortcut: Tensor | None,
    act: str | None,
) -> Tensor:
    """Return act(block(x) + shortcut) for x (N, C, *S), computed by the kernels `fused`.

    arguments: arguments(block) returns the values of the schema of the block's `Coefficients`.
    """
    return fused(block, as_dense(x), shortcut, *arguments(block), act == "relu", act=act)[0]


# ---- the perceptron --------------------------------------------------------------------------------------------------


def perceptron_coefficients(uses_maxima: bool) -> Coefficients:
    """Return the coefficients of SE, or, with uses_maxima=True, of channel attention, which also uses maxima."""
    return Coefficients(
        "Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str gate, str act",
        lambda x, w1, *_: perceptron.saved(x, len(w1), uses_maxima),
        lambda x, layers, saved: perceptron.forward(x, Layers._make(layers), uses_maxima, saved),
        partial(_perceptron_backward, uses_maxima),
        partial(_to_input, uses_maxima),
    )


def _perceptron_backward(
    uses_maxima: bool, x: Tensor, dy: Tensor, layers: Sequence[Any], saved: Tensor, gradients: Sequence[Any]
) -> Tensor:
    """Write the gradients of the layers' weights, and return those of averages and, if `uses_maxima`, maxima."""
    weights, weight_grads = Layers._make(layers), Layers._make([*gradients, *layers[4:]])
    return perceptron_backward.backward(x, dy, weights, uses_maxima, saved, None, weight_grads)
