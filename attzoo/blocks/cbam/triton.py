"""Fused kernels of CBAM: the forward pass reads x 3 times instead of 6, and writes y once; x * s is not stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ...fast.autograd import Fused, as_dense
from ...fast.cases import KernelCase
from ...fast.triton import passes, passes_backward, perceptron, perceptron_backward, running_stats, spatial
from ...fast.triton.passes_backward import Map
from ...fast.triton.perceptron import Layers
from ...fast.triton.running_stats import RunningStats
from ...fast.triton.spatial import Filter


def parts(x: Tensor, shortcut: Tensor | None, *other_arguments: Any) -> tuple[Layers, Filter]:
    """Group the operator's arguments, see `ARGUMENTS`, by channel attention and spatial attention."""
    *tensors, gate, eps, training, _ = other_arguments
    return Layers._make([*tensors[:4], gate, "relu"]), Filter._make([*tensors[4:], eps, training])


def outputs(x: Tensor, *other_arguments: Any) -> Sequence[Any]:
    """Allocate y (N, C, *S) and the tensors saved for the backward pass. Arguments: the operator's, see `ARGUMENTS`."""
    layers, conv = parts(x, *other_arguments)
    return torch.empty_like(x), perceptron.saved(x, len(layers.w1), uses_maxima=True), *spatial.allocate_saved(x, conv)


def forward(args: Sequence[Any], results: Sequence[Tensor], updated: RunningStats = running_stats.NONE) -> None:
    """Write the tensors in `results`: y and those saved for the backward pass. args: the operator's, see `ARGUMENTS`.

    Compute channel coefficients s, then spatial coefficients t from x * s, which is not stored, then x * s * t.
    updated: running statistics to update.
    """
    x, (layers, conv) = args[0], parts(*args)
    y, saved, spatial_saved = results[0], results[1], spatial.Saved(*results[2:])
    perceptron.forward(x, layers, True, saved)
    passes.pool_channels(x, saved, spatial_saved.maps)
    norm = spatial.forward(x.shape[2:], conv, spatial_saved, updated)
    passes.scale(x, saved, spatial_saved.t, y, args[1], args[-1], norm)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, saved_tensors: Sequence[Tensor], gradients: list[Any]
) -> None:
    """Write the gradients of x and of the parameters into the tensors in `gradients`, in three passes over x and dy.

    Args:
        dy: gradient of y.
        args: the operator's arguments, see `ARGUMENTS`.
        y: the output, None if no relu follows.
        saved_tensors: those that `forward` wrote after y.
        gradients: one tensor to write for each input and parameter, or None.

    """
    x, (layers, conv) = args[0], parts(*args)
    saved, spatial_saved = saved_tensors[0], spatial.Saved(*saved_tensors[1:])
    dx, _, *learned = gradients
    dy = passes_backward.grad_of_product(dy, x, y, gradients)
    dmaps = spatial.backward(x, dy, saved, conv, spatial_saved, learned[4:])
    map_gradients = Map(spatial_saved.t, spatial_saved.maps, dmaps)
    layer_gradients = Layers._make([*learned[:4], layers.gate, "relu"])
    pool_gradients = perceptron_backward.backward(x, dy, layers, True, saved, map_gradients, layer_gradients)
    passes_backward.to_input(x, dy, dx, saved, pool_gradients, True, map_gradients)


ARGUMENTS = """Tensor x, Tensor? shortcut, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2,
Tensor weight, Tensor? scale, Tensor? shift, Tensor? mean, Tensor? var, str gate, float eps, bool training, bool relu"""
KERNELS = Fused(
    "cbam", ARGUMENTS, 5, outputs, forward, backward, fixed=2, backward_needs_y=passes_backward.backward_needs_y
)
CASES: Final = (
    KernelCase(launches=(4, 4, 6)),
    KernelCase({"norm": True}, launches=(4, 4, 7), rare=True),
    KernelCase({"norm": True}, act="relu", rare=True),
)



def fused(block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """Return act(block(x) + shortcut) for x (N, C, *S), computed by the kernels."""
    *layers, gate, _ = perceptron.layers_of(block.channel)
    *tensors, eps, training = spatial.filter_of(block.spatial)
    options = gate, eps, training, act == "relu"
    updated = running_stats.for_kernels(block.spatial.norm, x.numel())
    y, *saved = KERNELS(block, as_dense(x), shortcut, *layers, *tensors, *options, updated=(updated,), act=act)
    if updated.mean is None:
        spatial.update_running_stats(block.spatial.norm, spatial.Saved(*saved[1:]))
    return y
