"""Fused kernels of spatial attention: the forward pass reads x 2 times instead of 3, and writes y once.

See torch.py for the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ...fast.autograd import Fused, as_dense
from ...fast.cases import KernelCase
from ...fast.triton import passes, passes_backward, running_stats, spatial
from ...fast.triton.passes_backward import Map
from ...fast.triton.running_stats import RunningStats
from ...fast.triton.spatial import Filter, Saved

ARGUMENTS = f"Tensor x, Tensor? shortcut, Tensor weight, {spatial.NORM}, bool relu"


def outputs(x: Tensor, _shortcut: Tensor | None, *arguments: Any) -> Sequence[Any]:
    """Allocate y (N, C, *S) and the tensors saved for the backward pass. Arguments: the operator's, see `ARGUMENTS`."""
    return torch.empty_like(x), *spatial.allocate_saved(x, Filter(*arguments[:-1]))


def forward(args: Sequence[Any], results: Sequence[Tensor], updated: RunningStats = running_stats.NONE) -> None:
    """Write the tensors in `results`: y and those saved for the backward pass. args: the operator's, see `ARGUMENTS`.

    Pool x over channels, compute the coefficients t, and multiply x by them. updated: running statistics to update.
    """
    x, shortcut, *conv, relu = args
    y, *saved_tensors = results
    passes.pool_channels(x, None, saved_tensors[0])
    norm = spatial.forward(x.shape[2:], Filter(*conv), Saved(*saved_tensors), updated)
    passes.scale(x, None, saved_tensors[1], y, shortcut, relu, norm)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, saved_tensors: Sequence[Tensor], gradients: list[Any]
) -> None:
    """Write the gradients of x and of the parameters into the tensors in `gradients`.

    The gradient of the coefficients t is the sum of dy * x. That of x is dy * t plus the gradients of the maps.

    Args:
        dy: gradient of y.
        args: the operator's arguments, see `ARGUMENTS`.
        y: the output, None if no relu follows.
        saved_tensors: those that `forward` wrote after y.
        gradients: one tensor to write for each input and parameter, or None.

    """
    x, _, *conv, _ = args
    dx, _, *weight_gradients = gradients
    dy, saved = passes_backward.grad_of_product(dy, x, y, gradients), Saved(*saved_tensors)
    dmaps = spatial.backward(x, dy, None, Filter(*conv), saved, weight_gradients)
    passes_backward.to_input(x, dy, dx, None, None, map_gradients=Map(saved.t, saved.maps, dmaps))


KERNELS = Fused(
    "spatial_attention", ARGUMENTS, 4, outputs, forward, backward, fixed=2,
    backward_needs_y=passes_backward.backward_needs_y,
)   # fmt: skip
CASES: Final = (
    KernelCase(launches=(3, 3, 4)),
    KernelCase({"norm": True}),
    KernelCase({"spatial_dims": 1}, rare=True),
    KernelCase({"spatial_dims": 3}, rare=True),
)



def fused(block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """Return act(block(x) + shortcut) for x (N, C, *S), computed by the kernels."""
    conv = spatial.filter_of(block)
    updated = running_stats.for_kernels(block.norm, x.numel())
    y, *saved = KERNELS(block, as_dense(x), shortcut, *conv, act == "relu", updated=(updated,), act=act)
    if updated.mean is None:
        spatial.update_running_stats(block.norm, Saved(*saved))
    return y
