"""Operations that move, group or repeat channels, in PyTorch. Tensors are (N, C, *S)."""

from __future__ import annotations

from torch import Tensor

from ..common.torch import move_last
from ..guard import is_plain


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Take the first channel of each group of consecutive channels, then the second of each: (N, C, *S) -> (N, C, *S).

    groups: number of groups, a divisor of C.
    """
    if is_plain(x) and not x.is_contiguous() and (last := x.movedim(1, -1)).is_contiguous():   # keeps channels last
        return move_last(last.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2))
    return x.reshape(-1, groups, x.shape[1] // groups, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def fold_groups(x: Tensor, groups: int) -> Tensor:
    """Move groups of consecutive channels into the batch: (N, C, *S) -> (N * groups, C / groups, *S)."""
    return x.reshape(-1, x.shape[1] // groups, *x.shape[2:])


def unfold_groups(z: Tensor, groups: int) -> Tensor:
    """Move the groups of `fold_groups` back: (N * groups, K, *S) -> (N, groups * K, *S)."""
    return z.reshape(-1, groups * z.shape[1], *z.shape[2:])


def repeat_channels(x: Tensor, times: int) -> Tensor:
    """Repeat each channel `times` times in a row: (N, C, *S) -> (N, C * times, *S)."""
    return x.repeat_interleave(times, 1)
