"""Fused kernels of the attention gate: the forward pass reads x and g once and writes y once.

The backward pass reads x, g and dy once, and writes dx and dg once. Batch norm in training needs sums over all samples,
three in the forward pass and two in the backward pass, each of which reads its input once more. See torch.py for the
definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from ...fast.autograd import Fused, as_dense
from ...fast.cases import KernelCase
from ...fast.choice import LONGEST
from ...fast.triton import channel_norm, passes, running_stats
from ...fast.triton.common import cdiv, empty_float32, is_channels_last, match_layout
from ...fast.triton.running_stats import RunningStats
from ...ops.numpy import one_value
from .kernels import backward as backward_kernels
from .kernels import forward as forward_kernels
from .kernels import norms as norm_kernels
from .kernels.backward import OutputGradient, ReluGradient
from .kernels.forward import Outputs
from .kernels.projections import Projection, Projections
from .kernels.resize import Grids, grids
from .kernels.weights import Gradients, ProjectionGradients, weight_gradients

ARGUMENTS = """Tensor x, Tensor g, Tensor w, Tensor? bias, Tensor u, Tensor? gating_bias, Tensor psi, Tensor? psi_bias,
Tensor? scale, Tensor? shift, Tensor? gating_scale, Tensor? gating_shift, Tensor? psi_scale, Tensor? psi_shift,
Tensor? mean, Tensor? var, Tensor? gating_mean, Tensor? gating_var, Tensor? psi_mean, Tensor? psi_var,
float[] eps, bool[] training, str interpolation, bool align_corners, bool needs_backward"""


class Call(NamedTuple):
    """The arguments of the operator, grouped.

    Attributes:
        x: (N, C, *S).
        g: (N, G, *G).
        projections: the tensors of the three projections.
        interpolation: "linear" or "nearest".
        align_corners: whether linear interpolation aligns corners.
        needs_backward: whether tensors are saved for a backward pass.

    """

    x: Tensor
    g: Tensor
    projections: Projections
    interpolation: str
    align_corners: bool
    needs_backward: bool

    @property
    def inner_channels(self) -> int:
        """Return F, the number of channels in which x and g are added."""
        return self.projections.skip.weight.shape[0]

    def grids(self, source: Tensor) -> Grids:
        """Return the grids for resampling from the positions of `source` (N, G, *G) to those of x."""
        return grids(source.shape[2:], self.x.shape[2:], self.interpolation, self.align_corners)

    def with_batch_statistics(self, saved: Saved) -> Projections:
        """Return the projections with the saved statistics where a norm uses those of the batch, psi without one.

        The kernels apply such a norm of psi separately, see `psi_batch_norm`.
        """
        skip, gating, psi = self.projections
        skip, gating = skip.with_batch_statistics(saved.skip_batch), gating.with_batch_statistics(saved.gating_batch)
        return Projections(skip, gating, psi.without_batch_norm())

    def psi_batch_norm(self, saved: Saved, updated: RunningStats = running_stats.NONE) -> channel_norm.Norm | None:
        """Return psi's norm if it uses statistics of the batch. updated: running statistics that the kernels update."""
        psi = self.projections.psi
        if psi.scale is None or psi.shift is None or not psi.by_batch:
            return None
        tensors = saved.logits, saved.psi_statistics
        return channel_norm.Norm(psi.scale, psi.shift, updated, psi.eps, True, *tensors)


class Saved(NamedTuple):
    """Tensors saved for the backward pass; those that are not needed have no elements.

    alpha: (N, S).
    bits: the relu's signs, (N, ceil(F / 32), S).
    skip_batch, gating_batch: mean, variance and unbiased variance, without the bias, of a projection whose norm uses
        statistics of the batch, (3, F).
    logits, psi_statistics: input, (N, S), and statistics, (3,), of psi's norm if it uses batch statistics, see
        `channel_norm.Norm`.
    """

    alpha: Tensor
    bits: Tensor
    skip_batch: Tensor
    gating_batch: Tensor
    logits: Tensor
    psi_statistics: Tensor


# ---- conversion from and to the flat lists of the operator -----------------------------------------------------------


def call_of(
    x: Tensor, g: Tensor,
    w: Tensor, bias: Tensor | None, u: Tensor, gating_bias: Tensor | None, psi: Tensor, psi_bias: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, gating_scale: Tensor | None, gating_shift: Tensor | None,
    psi_scale: Tensor | None, psi_shift: Tensor | None,
    mean: Tensor | None, var: Tensor | None, gating_mean: Tensor | None, gating_var: Tensor | None,
    psi_mean: Tensor | None, psi_var: Tensor | None,
    eps: Sequence[float], training: Sequence[bool], interpolation: str, align_corners: bool, needs_backward: bool,
) -> Call:   # fmt: skip
    """Group the arguments of the operator, in the order of `ARGUMENTS`.

    eps and training have three values each, for the norms of skip, gating and psi.
    """
    projections = Projections(
        Projection(w, bias, scale, shift, mean, var, eps[0], training[0]),
        Projection(u, gating_bias, gating_scale, gating_shift, gating_mean, gating_var, eps[1], training[1]),
        Projection(psi, psi_bias, psi_scale, psi_shift, psi_mean, psi_var, eps[2], training[2]),
    )
    return Call(x, g, projections, interpolation, align_corners, needs_backward)


def grouped_gradients(
    dw: Tensor, dbias: Tensor | None, du: Tensor, dgating_bias: Tensor | None, dpsi: Tensor, dpsi_bias: Tensor | None,
    dscale: Tensor | None, dshift: Tensor | None, dgating_scale: Tensor | None, dgating_shift: Tensor | None,
    dpsi_scale: Tensor | None, dpsi_shift: Tensor | None,
) -> Gradients:   # fmt: skip
    """Group the gradients of the parameters, given in the order in which `ARGUMENTS` lists the parameters."""
    return Gradients(
        ProjectionGradients(dw, dbias, dscale, dshift),
        ProjectionGradients(du, dgating_bias, dgating_scale, dgating_shift),
        ProjectionGradients(dpsi, dpsi_bias, dpsi_scale, dpsi_shift),
    )


def flat_arguments(call: Call) -> list[Any]:
    """Return the operator's arguments in the order of `ARGUMENTS`; the inverse of `call_of`."""
    skip, gating, psi = call.projections
    return [
        call.x, call.g,
        skip.weight, skip.bias, gating.weight, gating.bias, psi.weight, psi.bias,
        skip.scale, skip.shift, gating.scale, gating.shift, psi.scale, psi.shift,
        skip.mean, skip.var, gating.mean, gating.var, psi.mean, psi.var,
        [skip.eps, gating.eps, psi.eps], [skip.by_batch, gating.by_batch, psi.by_batch],
        call.interpolation, call.align_corners, call.needs_backward,
    ]   # fmt: skip


# ---- passes ----------------------------------------------------------------------------------------------------------


def outputs(*args: Any) -> Sequence[Any]:
    """Allocate y (N, C, *S) and the tensors saved for the backward pass. args: the operator's, see `ARGUMENTS`."""
    call = call_of(*args)
    x, needs_backward = call.x, call.needs_backward
    N, S, F = x.shape[0], prod(x.shape[2:]), call.inner_channels
    projections = call.projections
    skip, gating, psi = projections.skip.by_batch, projections.gating.by_batch, projections.psi.by_batch
    # not N * needs_backward: torch 2.11 cannot multiply a symbolic size by a bool
    words = cdiv(F, forward_kernels.WORD)
    saved = Saved(
        alpha=empty_float32(x, N if needs_backward or psi else 0, S),
        bits=torch.empty((N if needs_backward else 0, words, S), dtype=torch.int32, device=x.device),
        skip_batch=empty_float32(x, 3, F if skip else 0),
        gating_batch=empty_float32(x, 3, F if gating else 0),
        logits=empty_float32(x, N if psi else 0, S),
        psi_statistics=empty_float32(x, 3 if psi else 0),
    )
    return torch.empty_like(x), *saved


def forward(args: Sequence[Any], results: Sequence[Tensor], *updated: RunningStats) -> None:
    """Write the tensors in `results`: y, then those of `Saved`. args: the operator's arguments, see `ARGUMENTS`.

    Compute statistics of the batch, project g if it is coarser than x, then compute alpha and y. updated: the running
    statistics of the norms of skip, gating and psi to update; nothing for none.
    """
    call, y, saved = call_of(*args), results[0], Saved(*results[1:])
    x, g, (skip, gating, _) = call.x, call.g, call.projections
    skip_stats, gating_stats, psi_stats = updated or (running_stats.NONE,) * 3
    channels_last, both_grids = is_channels_last(x), call.grids(g)
    if not both_grids.are_equal:   # before any update, because a large allocation may fail
        projected_g = empty_float32(x, g.shape[0], prod(g.shape[2:]), call.inner_channels)
    if skip.by_batch:
        norm_kernels.moments(x, skip, skip_stats, channels_last, saved.skip_batch)
    if gating.by_batch:
        norm_kernels.moments(g, gating, gating_stats, channels_last, saved.gating_batch)
    psi_norm = call.psi_batch_norm(saved, psi_stats)
    alpha = saved.alpha if call.needs_backward and psi_norm is None else None
    written = Outputs(y if psi_norm is None else None, alpha, saved.bits if call.needs_backward else None)
    projections = call.with_batch_statistics(saved)
    if not both_grids.are_equal:
        forward_kernels.project(g, projections.gating, projected_g, channels_last)
        g = projected_g
    forward_kernels.gate(x, g, projections, both_grids, written, psi_norm)
    if psi_norm is not None:
        passes.scale(x, None, saved.alpha, y, norm=psi_norm)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, saved_tensors: Sequence[Tensor], gradients: list[Any]
) -> None:
    """Write the gradients of x, g and the parameters into the tensors in `gradients`.

    Args:
        dy: gradient of y.
        args: the operator's arguments, see `ARGUMENTS`.
        y: None, since y is not needed.
        saved_tensors: those of `Saved`.
        gradients: one tensor to write for each input and parameter, or None.

    """
    call, saved = call_of(*args), Saved(*saved_tensors)
    x, g = call.x, call.g
    dx, dg, *parameter_gradients = gradients
    parameter_grads = grouped_gradients(*parameter_gradients)
    projections, psi_norm = call.with_batch_statistics(saved), call.psi_batch_norm(saved)
    skip, gating, psi = projections
    dy, channels_last = match_layout(dy, x), is_channels_last(x)
    compute_dz = not skip.by_batch and psi_norm is None and backward_kernels.fits_one_tile(x, call.inner_channels)
    if compute_dz:
        dz, norm_gradient = empty_float32(x, *saved.alpha.shape), None
    else:
        norms = psi_norm, parameter_grads.psi, skip.by_batch
        dz, norm_gradient = backward_kernels.sigmoid_gradient(x, dy, saved.alpha, channels_last, *norms)
    on_x, on_g = ReluGradient(dz, saved.bits, call.grids(x)), ReluGradient(dz, saved.bits, call.grids(g))
    output = OutputGradient(dy, saved.alpha, compute_dz)
    batch = norm_kernels.batch_terms(x, skip, on_x, norm_gradient, channels_last)
    skip_sums = backward_kernels.input_gradient(x, dx, skip, psi, on_x, output, batch, channels_last)
    batch = norm_kernels.batch_terms(g, gating, on_g, None, channels_last)
    gating_sums = backward_kernels.input_gradient(g, dg, gating, psi, on_g, None, batch, channels_last)
    weight_gradients(projections, skip_sums, gating_sums, parameter_grads)


class Product(nn.Module):
    """x * gate.attention(x, g), the part of a gate that the kernels compute, with only its parameters."""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        for name in ("skip", "gating", "psi", "skip_norm", "gating_norm", "psi_norm"):
            self.add_module(name, getattr(gate, name))
        self.attention = gate.attention

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """Return x * attention(x, g)."""
        return x * self.attention(x, g)


KERNELS = Fused("attention_gate", ARGUMENTS, len(Saved._fields), outputs, forward, backward, fixed=6, plain=Product,
    settings=forward_kernels.precision,
)
CASES: Final = (
    KernelCase(launches=(1, 1, 3)),
    KernelCase({"norm": True}, launches=(1, 4, 6), rare=True),
    KernelCase(coarse=2),
    KernelCase({"norm": True}, coarse=2),
    KernelCase({"inter_channels": 192, "norm": True}),
    KernelCase(exact=True),
    KernelCase({"norm": True}, coarse=2, exact=True),
    KernelCase({"inter_channels": 128, "norm": True}, exact=True),
    KernelCase({"spatial_dims": 1}, coarse=2, rare=True),
    KernelCase({"spatial_dims": 3}, coarse=2, rare=True),
    KernelCase({"align_corners": True}, coarse=2, rare=True),
    KernelCase({"interpolation": "nearest"}, coarse=2, rare=True),
)


def refusal(gate: Any, x: Tensor, g: Tensor) -> str | None:
    """Return why the kernels cannot compute a gate with these inputs, as the end of an error; None if they can."""
    spec = gate.spec
    convs: Any = gate.skip, gate.gating, gate.psi
    norms: Any = gate.skip_norm, gate.gating_norm, gate.psi_norm
    sizes = [(spec.width, spec.channels), (spec.width, spec.gating_channels), (1, spec.width)]
    convs_match = [tuple(conv.weight.shape[:2]) for conv in convs] == sizes
    norms_match = not spec.norm or all(
        norm.weight.shape == size[:1] for norm, size in zip(norms, sizes, strict=True)
    )
    if not (convs_match and norms_match):
        return "layers of the gate have other sizes than the gate created"
    if prod(spec.strides) > 1:
        return f"the kernels need stride 1, got {spec.strides}"
    if spec.norm and not x.shape[0]:
        return "batch norm needs a batch of at least 1 sample, got 0"
    if spec.width * max(prod(x.shape[2:]), prod(g.shape[2:])) >= LONGEST:
        shapes = f"{tuple(x.shape)} and {tuple(g.shape)}"
        return f"inter_channels * pixels must be less than 2^31 per sample, got {spec.width} and shapes {shapes}"
    return None


def fused(block: Any, x: Tensor, g: Tensor) -> Tensor:
    """Return x * block.attention(x, g) for x (N, C, *S) and g (N, G, *G): (N, C, *S), computed by the kernels."""
    x = as_dense(x)
    g = match_layout(g, x)
    projections = Projections(
        projection_of(block.skip, block.skip_norm),
        projection_of(block.gating, block.gating_norm),
        projection_of(block.psi, block.psi_norm),
    )
    counts = [tensor.shape[0] * prod(tensor.shape[2:]) for tensor in (x, g, x)]
    for input_tensor, count, projection in zip((x, g, x), counts, projections, strict=True):
        if projection.by_batch and count == 1:
            raise one_value(input_tensor.shape)
    needs_backward = False
    if torch.is_grad_enabled():
        learned = [
            tensor
            for projection in projections
            for tensor in (projection.weight, projection.bias, projection.scale, projection.shift)
        ]
        needs_backward = any(tensor is not None and tensor.requires_grad for tensor in (x, g, *learned))
    spec = block.spec
    call = Call(x, g, projections, spec.interpolation, spec.align_corners, needs_backward)
    norms = block.skip_norm, block.gating_norm, block.psi_norm
    updated = [running_stats.for_kernels(norm, count) for norm, count in zip(norms, counts, strict=True)]
    y, *saved = KERNELS(block, *flat_arguments(call), updated=updated)
    remaining = [norm if stats.mean is None else None for norm, stats in zip(norms, updated, strict=True)]
    _update_running_stats(remaining, projections, counts, Saved(*saved))
    return y


def projection_of(conv: Any, norm: Any) -> Projection:
    """Return the tensors of a convolution and the norm after it (`nn.Identity` for none)."""
    if isinstance(norm, nn.Identity):
        return Projection(conv.weight, conv.bias, None, None, None, None, 0.0, False)
    mean = norm.running_mean
    by_batch = norm.training or mean is None
    mean, var = (None, None) if by_batch else (mean, norm.running_var)
    return Projection(conv.weight, conv.bias, norm.weight, norm.bias, mean, var, norm.eps, by_batch)


def _update_running_stats(
    norms: Sequence[Any], projections: Projections, counts: Sequence[int], saved: Saved
) -> None:   # fmt: skip
    """Update the running statistics of the norms that use batch statistics and that no kernel has updated.

    Args:
        norms: the norms of skip, gating and psi; None for one that a kernel has updated.
        projections: the tensors of its projections.
        counts: the number of values per channel from which the norms of skip, gating and psi computed their statistics.
        saved: the tensors that the forward pass saved, with these statistics.
    """
    skip_norm, gating_norm, psi_norm = norms
    if running_stats.has_tracked(skip_norm):
        running_stats.update(skip_norm, *_mean_and_variance(saved.skip_batch, projections.skip.bias), counts[0])
    if running_stats.has_tracked(gating_norm):
        running_stats.update(gating_norm, *_mean_and_variance(saved.gating_batch, projections.gating.bias), counts[1])
    if running_stats.has_tracked(psi_norm):
        running_stats.update(psi_norm, saved.psi_statistics[:1], saved.psi_statistics[2:], counts[2])


def _mean_and_variance(batch: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean of a convolution with its bias, and the unbiased variance, (F,) each.

    batch: (3, F), mean, variance and unbiased variance without the bias.
    """
    return (batch[0] if bias is None else batch[0] + bias.detach()), batch[2]
