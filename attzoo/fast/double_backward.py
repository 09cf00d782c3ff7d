"""Compute the gradients of a backward pass by autograd where the pass is itself differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import guard


def needs_differentiable_backward(*gradients: Tensor | None) -> bool:
    """Whether a backward pass with these gradients must be made of differentiable operations, without `out=`.

    It must if it is itself differentiated, or runs under vmap.
    """
    is_differentiable = torch.is_grad_enabled() or guard.in_transform()
    return is_differentiable or any(
        gradient is not None and guard.is_batched_gradient(gradient) for gradient in gradients
    )


def differentiate(
    call: Callable[..., list[Tensor]], inputs: tuple[Tensor | None, ...], gradients: Any
) -> list[Tensor | None]:
    """Return the gradient of each input of `call` by autograd; None for an input that requires none.

    call: function of the inputs that returns a list of tensors. gradients: gradients of these tensors, or None each.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():   # views: one input may be computed from another, and no gradient may flow between them
        views = [x if x is None else x.view_as(x) for x in inputs]
        outputs = call(*views)
    pairs = [(y, dy) for y, dy in zip(outputs, gradients, strict=True) if dy is not None and y.requires_grad]
    targets = [view for view in views if view is not None and view.requires_grad]
    if not pairs:
        return [None] * len(views)
    ys, dys = zip(*pairs, strict=True)
    computed = iter(torch.autograd.grad(ys, targets, dys, create_graph=create_graph, allow_unused=True))
    return [None if view is None or not view.requires_grad else next(computed) for view in views]
