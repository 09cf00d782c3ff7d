"""The additive attention gate in Triton: x and g are read once, y is written once; torch.py says what.

Going back, x, g and dy are read once, and dx and dg written once. Batch norm in training needs sums over all samples
three times forward and two times back, and a pass over its inputs for each.
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
from ...fast.triton import channel_norm, passes
from ...fast.triton.common import cdiv, empty_float32, is_channels_last, match_layout, update_running_stats
from ...ops.numpy import one_value
from .kernels import backward as backward_kernels
from .kernels import forward as forward_kernels
from .kernels import norms as norm_kernels
from .kernels.backward import Slopes
from .kernels.forward import Norm
from .kernels.resize import grids

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
    """What the backward pass needs: alpha (N, S), the relu's bits, and the weights' scales as they were folded.

    Of norms that go by the batch also its mean, variance and unbiased variance, (3, F), without the bias; and of psi's
    its input, (N, S), and statistics, see channel_norm.Norm. What is not needed is empty.
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
    bits = torch.empty((N if it.keep else 0, cdiv(F, forward_kernels.WORD), S), dtype=torch.int32, device=x.device)
    alpha = empty_float32(x, N if it.keep or psi else 0, S)
    norms = empty_float32(x, 3, F if skip else 0), empty_float32(x, 3, F if gating else 0)
    batches = *norms, empty_float32(x, N if psi else 0, S), empty_float32(x, 3 if psi else 0)
    return torch.empty_like(x), *Kept(alpha, bits, empty_float32(x, 4 * F + 2), *batches)


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Fold the norms, project g where it is coarser, and do the rest in one pass, but for norms by the batch."""
    x, g, it = args[0], args[1], Gate(*args[2:])
    y, kept = to[0], Kept(*to[1:])
    skip, gating, psi = it.training
    biases = [None if skip else it.bias, None if gating else it.gating_bias, it.psi_bias]
    if skip:
        norm_kernels.moments(x, it.w, is_channels_last(x), kept.batch)
    if gating:
        norm_kernels.moments(g, it.u, is_channels_last(x), kept.gating_batch)
    after = (None,) * 4 if psi else (it.psi_scale, it.psi_shift, it.psi_mean, it.psi_var)
    norms = [
        Norm(it.scale, it.shift, *((kept.batch, None) if skip else (it.mean, it.var)), it.eps[0]),
        Norm(
            it.gating_scale,
            it.gating_shift,
            *((kept.gating_batch, None) if gating else (it.gating_mean, it.gating_var)),
            it.eps[1],
        ),
        Norm(*after, it.eps[2]),
    ]
    forward_kernels.fold(it.psi, biases, norms, kept.folded)
    coarse = g.shape[2:] != x.shape[2:]
    if coarse:
        p = empty_float32(x, g.shape[0], prod(g.shape[2:]), it.w.shape[0])
        forward_kernels.project(g, it.u, kept.folded, p, is_channels_last(x))
    room = None if psi else y, kept.alpha if it.keep and not psi else None, kept.bits if it.keep else None
    second, u = (p, None) if coarse else (g, it.u)
    of_psi = _psi_norm(it, kept)
    forward_kernels.gate(x, second, it.w, u, kept.folded, _grids(x, g, it), room, of_psi)
    if of_psi is not None:
        passes.scale(x, None, kept.alpha, y, norm=of_psi)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, saved: Sequence[Tensor], gradients: list[Any]
) -> None:
    """The gradient of the sigmoid's input, then those of x and g, then those of weights."""
    x, g, it = args[0], args[1], Gate(*args[2:])
    kept, F = Kept(*saved), len(it.w)
    dx, dg, *learned = gradients
    skip, gating, psi = it.training
    dy, channels_last = match_layout(dy, x), is_channels_last(x)
    own = not skip and not psi and backward_kernels.whole(x, F)
    if own:
        dz = empty_float32(x, *kept.alpha.shape)
    else:
        of_psi = _psi_norm(it, kept)
        dz = backward_kernels.to_sigmoid(x, dy, kept.alpha, channels_last, of_psi, learned[10:])
    of_x = Slopes(dz, kept.bits, _grids(x, x, it))
    of_g = Slopes(dz, kept.bits, _grids(x, g, it))
    centre = gating_centre = None
    if skip:
        centre = norm_kernels.centre(x, it.w, kept.batch, it.eps[0], of_x, channels_last)
    parts = backward_kernels.to_input(x, dy, kept.alpha, it.w, kept.folded, 0, of_x, own, centre, dx, channels_last)
    if gating:
        gating_centre = norm_kernels.centre(g, it.u, kept.gating_batch, it.eps[1], of_g, channels_last)
    more = backward_kernels.to_input(g, None, None, it.u, kept.folded, 1, of_g, False, gating_centre, dg, channels_last)
    norms = [
        *((None, kept.batch, None) if skip else (it.bias, it.mean, it.var)),
        *learned[6:8],
        it.eps[0],
        *((None, kept.gating_batch, None) if gating else (it.gating_bias, it.gating_mean, it.gating_var)),
        *learned[8:10],
        it.eps[1],
        *(it.psi, it.psi_bias, it.psi_mean, it.psi_var),
        *learned[10:],
        it.eps[2],
    ]
    centres = centre, gating_centre
    backward_kernels.to_weights(parts, more, it.w, it.u, kept.folded, centres, learned[:6], norms, psi)


def _psi_norm(it: Gate, kept: Kept) -> channel_norm.Norm | None:
    """That of psi, if it goes by the batch."""
    if it.psi_scale is None or it.psi_shift is None or not it.training[2]:
        return None
    return channel_norm.Norm(it.psi_scale, it.psi_shift, None, None, it.eps[2], kept.logits, kept.psi_batch)


class Product(nn.Module):
    """x * gate.attention(x, g), which is all that the kernels do, by the parameters that this takes."""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        for name in ("skip", "gating", "psi", "skip_norm", "gating_norm", "psi_norm"):
            self.add_module(name, getattr(gate, name))
        self.attention = gate.attention

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        return x * self.attention(x, g)


KERNELS = Fused("attention_gate", ARGUMENTS, len(Kept._fields), outputs, forward, backward, fixed=6, plain=Product,
    settings=forward_kernels.precision,
)
CASES: Final = (
    KernelCase(starts=(2, 2, 3)),
    KernelCase({"norm": True}, starts=(2, 16, 7), rare=True),
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
    """Why the kernels cannot compute a gate of these inputs; None where they can."""
    spec = gate.spec
    convs: Any = gate.skip, gate.gating, gate.psi
    norms: Any = gate.skip_norm, gate.gating_norm, gate.psi_norm
    sizes = [(spec.width, spec.channels), (spec.width, spec.gating_channels), (1, spec.width)]
    if [tuple(conv.weight.shape[:2]) for conv in convs] != sizes:
        return "its layers are of other sizes than it made"
    if any(norm.weight.shape != size[:1] for norm, size in zip(norms, sizes, strict=True) if spec.norm):
        return "its layers are of other sizes than it made"
    if prod(spec.strides) > 1:
        return f"it takes a stride of 1, got {spec.strides}"
    if spec.norm and not x.shape[0]:
        return "there is nothing to normalise in a batch of nothing"
    if spec.width * max(prod(x.shape[2:]), prod(g.shape[2:])) >= LONGEST:
        return f"it takes samples of fewer than 2^31 numbers within, got {tuple(x.shape)} and {tuple(g.shape)}"
    return None


def fused(block: Any, x: Tensor, g: Tensor) -> Tensor:
    """(N, C, *S), (N, G, *G) -> x * block.attention(x, g), (N, C, *S)."""
    x = as_dense(x)
    g = match_layout(g, x)
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
        _update_running_stats(block, by_batch, counts, Kept(*saved))
    return y


# ---- norms -----------------------------------------------------------------------------------------------------------


def _update_running_stats(block: Any, by_batch: Sequence[bool], counts: Sequence[int], kept: Kept) -> None:
    """Running statistics follow the batch's."""
    skip, gating, psi = by_batch
    if skip:
        update_running_stats(block.skip_norm, *_biased(kept.batch, block.skip.bias), counts[0])
    if gating:
        update_running_stats(block.gating_norm, *_biased(kept.gating_batch, block.gating.bias), counts[1])
    if psi:
        update_running_stats(block.psi_norm, kept.psi_batch[:1], kept.psi_batch[2:], counts[2])


def _biased(batch: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean, with the bias, and unbiased variance."""
    return (batch[0] if bias is None else batch[0] + bias.detach()), batch[2]


def _grids(x: Tensor, g: Tensor, it: Gate) -> Any:
    return grids(g.shape[2:], x.shape[2:], it.interpolation, it.align_corners)
