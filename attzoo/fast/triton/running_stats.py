"""Running statistics of batch norms in training, updated by the kernels that compute the statistics of the batch.

In a graph, and where a kernel cannot write them, PyTorch's operators update them after the kernels.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import REAL


class RunningStats(NamedTuple):
    """Running statistics of F channels that a kernel updates; all fields are None if it updates none.

    mean, var: running mean and variance, (F,).
    batches: number of batches so far, an integer tensor of shape (); None if they are not counted.
    momentum: weight of a batch; None for the average of all batches.
    """

    mean: Tensor | None
    var: Tensor | None
    batches: Tensor | None
    momentum: float | None


NONE: Final = RunningStats(None, None, None, None)


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def update_channels(running_mean, running_var, batches, momentum, mean, var, f, F):
    """Add a batch to the running statistics at channels f of F; see `RunningStats` for the first four arguments.

    mean, var: mean and unbiased variance of the batch at channels f. The batch is not counted, see `count_batch`.
    """
    if momentum is None:
        weight = 1 / (tl.load(batches) + 1).to(REAL)
    else:
        weight = momentum
    mean = (1 - weight) * tl.load(running_mean + f, f < F, 0.0).to(REAL) + weight * mean
    var = (1 - weight) * tl.load(running_var + f, f < F, 0.0).to(REAL) + weight * var
    tl.store(running_mean + f, mean.to(running_mean.dtype.element_ty), f < F)
    tl.store(running_var + f, var.to(running_var.dtype.element_ty), f < F)


@triton.jit
def count_batch(batches):
    """Add 1 to the number of batches, unless it is None. One program may do so, after `update_channels` of all."""
    if batches is not None:
        tl.store(batches, tl.load(batches) + 1)


# ---- outside kernels -------------------------------------------------------------------------------------------------


def for_kernels(norm: Any, count: int) -> RunningStats:
    """Return the running statistics of a norm (`nn.Identity` for none) that a kernel is to update, or NONE.

    NONE means that the norm updates none in this call, or that the caller must call `update` after the kernels instead:
    if the call becomes part of a graph, if mean or variance is not contiguous, if the number of batches is on another
    device than the mean, or if no kernel runs. None runs if `count`, the number of values of each channel, is 0.
    """
    if torch.compiler.is_compiling() or not has_tracked(norm) or not count:
        return NONE
    mean, var, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if not (mean.is_contiguous() and var.is_contiguous()) or (batches is not None and batches.device != mean.device):
        return NONE
    momentum = 0.0 if norm.momentum is None and batches is None else norm.momentum
    return RunningStats(mean, var, batches, None if momentum is None else float(momentum))


@torch.no_grad()
def update(norm: Any, mean: Tensor, var: Tensor, count: int) -> None:
    """Update the running statistics of a batch norm module that `has_tracked` in place.

    If `count` is 0, only the number of batches changes.

    mean, var: mean and unbiased variance of `count` values of every channel.
    """
    batches = norm.num_batches_tracked
    if batches is not None:
        batches += 1
    if not count:
        return
    step = norm.momentum
    if step is None:
        step = 0.0 if batches is None else 1 / batches
    for running, new in ((norm.running_mean, mean), (norm.running_var, var)):
        weight = step.to(running.dtype) if isinstance(step, Tensor) else step
        running.lerp_(new.to(running.dtype), weight)


def has_tracked(norm: Any) -> bool:
    """Whether a norm (`nn.Identity` or None for none) updates running statistics in a call."""
    return getattr(norm, "running_mean", None) is not None and norm.training and norm.track_running_stats
