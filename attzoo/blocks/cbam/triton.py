"""CBAM in Triton: x is read three times and y written once, in place of six reads; x * s is never written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ...fast.autograd import Fused, as_dense
from ...fast.cases import KernelCase
from ...fast.triton import passes, perceptron, spatial
from ...fast.triton.passes import Map
from ...fast.triton.perceptron import Layers
from ...fast.triton.spatial import Filter


def parts(x: Tensor, shortcut: Tensor | None, *it: Any) -> tuple[Layers, Filter]:
    """The arguments after these: tensors of both halves first, then their options."""
    *tensors, gate, eps, training, _ = it
    return Layers._make([*tensors[:4], gate]), Filter._make([*tensors[4:], eps, training])


def outputs(x: Tensor, *it: Any) -> Sequence[Any]:
    """y and what is kept."""
    layers, conv = parts(x, *it)
    return torch.empty_like(x), perceptron.saved(x, len(layers.w1), top=True), *spatial.kept(x, conv)


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Channel attention, but for the product, and spatial attention of what that would be."""
    x, (layers, conv) = args[0], parts(*args)
    y, saved, place = to[0], to[1], spatial.Kept(*to[2:])
    perceptron.forward(x, layers, True, saved)
    passes.pool_channels(x, saved, place.maps)
    norm = spatial.forward(x.shape[2:], conv, place)
    passes.scale(x, saved, place.t, y, args[1], args[-1], norm)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, kept: Sequence[Tensor], gradients: list[Any]
) -> None:
    """Three passes over x and dy: to t, to s with what t's maps share out, and to x with what s's pools do."""
    x, (layers, conv) = args[0], parts(*args)
    saved, place = kept[0], spatial.Kept(*kept[1:])
    dx, _, *learned = gradients
    dy = passes.grad_of_product(dy, x, y, gradients)
    dmaps = spatial.backward(x, dy, saved, conv, place, learned[4:])
    of_map = Map(place.t, place.maps, dmaps)
    to = Layers._make([*learned[:4], layers.gate])
    found = perceptron.backward(x, dy, layers, True, saved, of_map, to)
    passes.to_input(x, dy, dx, saved, found, True, of_map)


ARGUMENTS = """Tensor x, Tensor? shortcut, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2,
Tensor weight, Tensor? scale, Tensor? shift, Tensor? mean, Tensor? var, str gate, float eps, bool training, bool relu"""
KERNELS = Fused("cbam", ARGUMENTS, 5, outputs, forward, backward, fixed=2, backward_needs_y=passes.backward_needs_y)
CASES: Final = (
    KernelCase(starts=(4, 4, 6)),
    KernelCase({"norm": True}, starts=(4, 7, 7), rare=True),
    KernelCase({"norm": True}, act="relu", rare=True),
)



def fused(block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """(N, C, *S) -> (N, C, *S)."""
    *layers, gate = perceptron.layers_of(block.channel)
    *tensors, eps, training = it = spatial.filter_of(block.spatial)
    options = gate, eps, training, act == "relu"
    y, *kept = KERNELS(block, as_dense(x), shortcut, *layers, *tensors, *options, act=act)
    spatial.update_running_stats(block.spatial, it, spatial.Kept(*kept[1:]))
    return y
