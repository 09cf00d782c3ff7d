"""The additive attention gate in Triton: x and g are read once, y is written once; torch.py says what.

Going back, x, g and dy are read once, and dx and dg written once. Batch norm in training needs sums over all samples
three times forward and two times back, and a pass over its inputs for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...ops.fused import Fused, densely
from ...ops.numpy import one_value
from ...ops.triton import gate, gate_backward, gate_norm, passes
from ...ops.triton.common import alike, cdiv, follow, last, small
from ...ops.triton.gate import Norm
from ...ops.triton.gate_backward import Slopes
from ...ops.triton.resize import grids

ARGUMENTS = """Tensor x, Tensor g, Tensor w, Tensor? bias, Tensor u, Tensor? gating_bias, Tensor psi, Tensor? psi_bias,
Tensor? scale, Tensor? shift, Tensor? gating_scale, Tensor? gating_shift, Tensor? psi_scale, Tensor? psi_shift,
Tensor? mean, Tensor? var, Tensor? gating_mean, Tensor? gating_var, Tensor? psi_mean, Tensor? psi_var,
float[] eps, bool[] training, str interpolation, bool align_corners, bool keep"""


class Gate(NamedTuple):
    """The arguments after x and g: weights and biases, norms, what has run of them, and options.

    mean, var: None where a norm goes by the batch, for which `training` has True. keep: whether there is a way back.
    """

    w: Tensor
    bias: Tensor | None
    u: Tensor
    gating_bias: Tensor | None
    psi: Tensor
    psi_bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    gating_scale: Tensor | None
    gating_shift: Tensor | None
    psi_scale: Tensor | None
    psi_shift: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    gating_mean: Tensor | None
    gating_var: Tensor | None
    psi_mean: Tensor | None
    psi_var: Tensor | None
    eps: Sequence[float]
    training: Sequence[bool]
    interpolation: str
    align_corners: bool
    keep: bool


class Kept(NamedTuple):
    """What the way back needs: alpha (N, S), the relu's bits, and the weights' scales as they were folded.

    Of norms that go by the batch also its mean and variance, (2, F), without the bias; and of psi's the sigmoid's input
    before it, (N, S), and mean and 1 / deviation. What is not needed is empty.
    """

    alpha: Tensor
    bits: Tensor
    folded: Tensor
    batch: Tensor
    gating_batch: Tensor
    logits: Tensor
    psi_batch: Tensor


def outputs(x: Tensor, g: Tensor, *rest: Any) -> Sequence[Any]:
    """y and what is kept."""
    it = Gate(*rest)
    N, S, F = x.shape[0], prod(x.shape[2:]), it.w.shape[0]
    skip, gating, psi = it.training
    # not N * keep and so on: torch 2.11 multiplies no size of a graph by a bool
    bits = torch.empty((N if it.keep else 0, cdiv(F, gate.WORD), S), dtype=torch.int32, device=x.device)
    alpha = small(x, N if it.keep or psi else 0, S)
    norms = small(x, 2, F if skip else 0), small(x, 2, F if gating else 0)
    batches = *norms, small(x, N if psi else 0, S), small(x, 2 if psi else 0)
    return torch.empty_like(x), *Kept(alpha, bits, small(x, 4 * F + 2), *batches)


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Fold the norms, project g where it is coarser, and do the rest in one pass, but for norms by the batch."""
    x, g, it = args[0], args[1], Gate(*args[2:])
    y, kept = to[0], Kept(*to[1:])
    skip, gating, psi = it.training
    biases = [None if skip else it.bias, None if gating else it.gating_bias, it.psi_bias]
    batches = [_moments(x, it.w, kept.batch, last(x)) if skip else (it.mean, it.var)]
    batches += [_moments(g, it.u, kept.gating_batch, last(x)) if gating else (it.gating_mean, it.gating_var)]
    norms = [Norm(it.scale, it.shift, *batches[0], it.eps[0])]
    norms += [Norm(it.gating_scale, it.gating_shift, *batches[1], it.eps[1])]
    after = (None,) * 4 if psi else (it.psi_scale, it.psi_shift, it.psi_mean, it.psi_var)
    gate.fold(it.psi, biases, [*norms, Norm(*after, it.eps[2])], kept.folded)
    coarse = g.shape[2:] != x.shape[2:]
    if coarse:
        p = small(x, g.shape[0], prod(g.shape[2:]), it.w.shape[0])
        gate.project(g, it.u, kept.folded, p, last(x))
    room = None if psi else y, kept.alpha if it.keep and not psi else None
    more = kept.bits if it.keep else None, kept.logits if psi else None
    second, u = (p, None) if coarse else (g, it.u)
    gate.gate(x, second, it.w, u, kept.folded, _grids(x, g, it), (*room, *more))
    if psi:
        affine = _like(kept.alpha, it.psi_scale), _like(kept.alpha, it.psi_shift)
        norm = torch.ops.aten.native_batch_norm
        normal, mean, rate = norm(kept.logits[:, None], *affine, None, None, True, 0.0, it.eps[2])
        torch.sigmoid(normal[:, 0], out=kept.alpha)
        torch.cat([mean, rate], out=kept.psi_batch)
        passes.scale(x, None, kept.alpha, y)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, saved: Sequence[Tensor], gradients: list[Any]
) -> None:
    """The gradient of the sigmoid's input, then those of x and g, then those of weights."""
    x, g, it = args[0], args[1], Gate(*args[2:])
    kept, F = Kept(*saved), len(it.w)
    dx, dg, *learned = gradients
    skip, gating, psi = it.training
    dy, channels_last = alike(dy, x), last(x)
    own = not skip and not psi and gate_backward.whole(x, F)
    dz = small(x, *kept.alpha.shape) if own else gate_backward.to_sigmoid(x, dy, kept.alpha, channels_last)
    if psi:
        stats = None, None, *kept.psi_batch.unsqueeze(1), True, it.eps[2], [True, True, True]
        norm = torch.ops.aten.native_batch_norm_backward
        dz, *both = norm(dz[:, None], kept.logits[:, None], _like(dz, it.psi_scale), *stats)
        dz = dz[:, 0].contiguous()
        _write(learned[10:], both)
    of_x = Slopes(dz, kept.bits, _grids(x, x, it))
    of_g = Slopes(dz, kept.bits, _grids(x, g, it))
    scale, gating_scale, _, v = kept.folded[: 4 * F].view(4, F)
    t = p = e = centre = gating_centre = None
    if skip:
        centre, t, e = _centre(x, it.w, kept.batch, it.eps[0], of_x, channels_last)
    parts = gate_backward.to_input(x, dy, kept.alpha, it.w, scale, v, of_x, own, centre, dx, channels_last)
    if gating:
        gating_centre, p, _ = _centre(g, it.u, kept.gating_batch, it.eps[1], of_g, channels_last)
    more = gate_backward.to_input(g, None, None, it.u, gating_scale, v, of_g, False, gating_centre, dg, channels_last)
    totals = gate_backward.to_weights(parts, more, it.w, it.u, kept.folded, (t, p, e), learned[:6])
    _to_norms(totals, v, it, kept, learned[6:])


class Product(nn.Module):
    """x * gate.attention(x, g), which is all that the kernels do, by the parameters that this takes."""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        for name in ("skip", "gating", "psi", "skip_norm", "gating_norm", "psi_norm"):
            self.add_module(name, getattr(gate, name))
        self.attention = gate.attention

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        return x * self.attention(x, g)


KERNELS = Fused("attention_gate", ARGUMENTS, len(Kept._fields), outputs, forward, backward, fixed=6, plain=Product)


def fused(block: Any, x: Tensor, g: Tensor) -> Tensor:
    """(N, C, *S), (N, G, *G) -> x * block.attention(x, g), (N, C, *S)."""
    x = densely(x)
    g = alike(g, x)
    convs, norms = (block.skip, block.gating, block.psi), (block.skip_norm, block.gating_norm, block.psi_norm)
    by_batch = [not isinstance(norm, nn.Identity) and (norm.training or norm.running_mean is None) for norm in norms]
    counts = [t.shape[0] * prod(t.shape[2:]) for t in (x, g, x)]
    for shape, count, batch in zip((x.shape, g.shape, x.shape), counts, by_batch, strict=True):
        if batch and count == 1:
            raise one_value(shape)
    layers = [tensor for conv in convs for tensor in (conv.weight, conv.bias)]
    affine = [getattr(norm, name, None) for norm in norms for name in ("weight", "bias")]
    running = [
        None if batch else getattr(norm, name, None)
        for norm, batch in zip(norms, by_batch, strict=True)
        for name in ("running_mean", "running_var")
    ]
    tensors = [x, g, *layers, *affine]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    eps = [getattr(norm, "eps", 0.0) for norm in norms]
    options = eps, by_batch, block.spec.interpolation, block.spec.align_corners, keep
    y, *saved = KERNELS(block, *tensors, *running, *options)
    if any(by_batch):
        _follow(block, by_batch, counts, Kept(*saved))
    return y


# ---- norms -----------------------------------------------------------------------------------------------------------


def _moments(x: Tensor, w: Tensor, to: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of W x, both in `to` (2, F)."""
    to[0], to[1] = gate_norm.moments(x, w, channels_last)
    return to[0], to[1]


def _centre(
    x: Tensor, w: Tensor, batch: Tensor, eps: float, it: Slopes, channels_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What batch norm takes from e, (3, F), and sums of e W x and of e."""
    mean, var = batch
    of_e, of_t = gate_norm.sums(x, w, mean, it, channels_last)
    count = x.shape[0] * prod(x.shape[2:])
    return torch.stack([mean, of_e / count, of_t / (var + eps) / count]), of_t + mean * of_e, of_e


def _to_norms(totals: Tensor, v: Tensor, it: Gate, kept: Kept, gradients: Sequence[Any]) -> None:
    """Gradients of the norms' scales and shifts from sums of e W x, e U g, e and e (W x + U g + shift), and of dz."""
    F = v.numel()
    e_t, e_p, e, e_q = totals[: 4 * F].view(4, F)
    skip, gating, psi = it.training
    if it.scale is not None:
        bias, mean, var = (None, *kept.batch) if skip else (it.bias, it.mean, it.var)
        _write(gradients[:2], _to_norm(e_t, e, v, bias, mean, var, it.eps[0]))
    if it.gating_scale is not None:
        bias, mean, var = (None, *kept.gating_batch) if gating else (it.gating_bias, it.gating_mean, it.gating_var)
        _write(gradients[2:4], _to_norm(e_p, e, v, bias, mean, var, it.eps[1]))
    if it.psi_scale is not None and not psi:
        z, one = totals[4 * F :], torch.ones_like(totals[:1])
        before = (it.psi.flatten() * e_q).sum()
        _write(gradients[4:6], _to_norm(before, z, one, it.psi_bias, it.psi_mean, it.psi_var, it.eps[2]))


def _to_norm(
    e_t: Tensor, e: Tensor, v: Tensor, bias: Tensor | None, mean: Any, var: Any, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of scale and shift of a norm: v e' (t + bias - mean) / deviation, and v e'."""
    mean, var = _like(v, mean), _like(v, var)
    off = -mean if bias is None else bias - mean
    return v * (e_t + off * e) / torch.sqrt(var + eps), v * e


def _follow(block: Any, by_batch: Sequence[bool], counts: Sequence[int], kept: Kept) -> None:
    """Running statistics follow the batch's."""
    skip, gating, psi = by_batch
    if skip:
        follow(block.skip_norm, *_biased(kept.batch, block.skip.bias), counts[0])
    if gating:
        follow(block.gating_norm, *_biased(kept.gating_batch, block.gating.bias), counts[1])
    if psi:
        mean, rate = kept.psi_batch
        follow(block.psi_norm, mean, rate**-2 - block.psi_norm.eps, counts[2])


def _biased(batch: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    mean, var = batch
    return (mean if bias is None else mean + bias.detach()), var


def _grids(x: Tensor, g: Tensor, it: Gate) -> Any:
    return grids(g.shape[2:], x.shape[2:], it.interpolation, it.align_corners)


def _write(gradients: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    for gradient, values in zip(gradients, found, strict=True):
        gradient.copy_(values)


def _like(x: Tensor, array: Any) -> Tensor:
    return array.to(x.dtype)
