"""Compute channel attention, spatial attention and CBAM on a CPU in eager mode: y = x * s * t in few passes over x.

s is one coefficient per channel, computed from averages and maxima over space. t is one coefficient per position,
computed from averages and maxima over channels of x * s. The blocks compute both in `coefficients`, which autograd
differentiates. This module has only the operations that read all of x. They work on one part of the batch at a time,
which stays in the cache between reads. x * s is not saved, and the gradient of x is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import guard
from ..ops.torch import expand
from .choice import CpuForm
from .cpu_autograd import BackwardContext, Multiply, PoolChannels, PoolSpace
from .cpu_parts import empty_maps, flatten_space, parts, pools_of, write_maps

Coefficients = Callable[..., Tensor]
# Elements of x below which the overhead exceeds the savings: 0.1 to 0.2 ms in training, 0.05 ms in inference
SMALL = 1 << 17
SMALL_IN_INFERENCE = 1 << 20


def _is_worth_it(block: Any, x: Tensor) -> bool:
    """Whether x is large enough for the form for CPUs, and the block's parts are unmodified and have no hooks."""
    return (
        x.numel() >= (SMALL if torch.is_grad_enabled() else SMALL_IN_INFERENCE)
        and (torch.is_grad_enabled() or block.has_parts)   # else the plain form makes the same passes
        and all(guard.is_ordinary(getattr(block, name), kind) for name, kind in block.parts.items())
    )


CHANNEL = CpuForm(_is_worth_it, lambda block, x: scale(x, block.coefficients, None))
SPATIAL = CpuForm(_is_worth_it, lambda block, x: scale(x, None, block.coefficients))
BOTH = CpuForm(_is_worth_it, lambda block, x: scale(x, block.channel.coefficients, block.spatial.coefficients))


def scale(x: Tensor, compute_s: Coefficients | None, compute_t: Coefficients | None) -> Tensor:
    """Return x * s * t, (N, C, *S).

    Args:
        x: (N, C, *S).
        compute_s: computes s, (N, C), from the average and the maximum over space, (N, C) each; None for s = 1.
        compute_t: computes t, (N, 1, *S), from the average and the maximum over channels of x * s, (N, 2, *S); None for
            t = 1.

    """
    if compute_s and compute_t and not torch.is_grad_enabled():
        return _infer(x, compute_s, compute_t)
    context = BackwardContext()
    s = t = None
    outputs, maps, *pools = PoolSpace.apply(x, context, compute_s is not None)
    if compute_s:
        s = compute_s(*pools)
        context.s = s.detach()
    if compute_t:
        t = compute_t(PoolChannels.apply(x, maps, s, context))
        context.t = t.detach()
    return Multiply.apply(x, outputs, s, t)


def _infer(x: Tensor, compute_s: Coefficients, compute_t: Coefficients) -> Tensor:
    """Compute `scale` with both coefficients without gradients; x * s is stored in the memory of y."""
    s = compute_s(*pools_of(x))
    y, maps = torch.empty_like(x), empty_maps(x)
    for samples in parts(x):
        scaled = torch.mul(x[samples], expand(s[samples], x), out=y[samples])
        write_maps(flatten_space(scaled), maps[samples].flatten(2))
    return y.mul_(compute_t(maps))
