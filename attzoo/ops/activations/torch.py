"""Activations and softmax, in PyTorch. Tensors are (N, C, *S)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..guard import EXACT, is_plain

relu, sigmoid, tanh = torch.relu, torch.sigmoid, torch.tanh
maximum = torch.maximum   # splits the gradient at ties evenly


def hard_sigmoid(z: Tensor) -> Tensor:
    """Return relu6(z + 3) / 6. F.hardsigmoid is not used, because its float64 gradient is 1/6 rounded to float32."""
    return F.relu6(z + 3) / 6


def hard_swish(z: Tensor) -> Tensor:
    """Return z * relu6(z + 3) / 6."""
    return z * hard_sigmoid(z)


GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def activate(z: Tensor, act: str) -> Tensor:
    """Return the activation `act`, one of contract.ACTIVATIONS, of the hidden units z."""
    return {"relu": relu, "silu": F.silu, "hard_swish": hard_swish}[act](z)


def position_softmax(z: Tensor) -> Tensor:
    """Return the softmax over the spatial axes: (N, K, *S) -> (N, K, *S). Each of the K channels sums to 1.

    The result for half precision is float32: the smallest normal float16, 6e-5, is more than 1 / S for large maps.
    """
    dtype = None if z.dtype in EXACT else torch.float32   # None casts nothing in graphs converted to half precision
    return z.flatten(2).softmax(-1, dtype).reshape(z.shape)


def channel_softmax(s: Tensor) -> Tensor:
    """Return the softmax over the channels: (N, C) -> (N, C)."""
    return s.softmax(1)


ACTS: dict[str | None, Callable[[Tensor], Tensor]] = {None: lambda y: y, "relu": relu}
ACTS_: dict[str | None, Callable[[Tensor], Tensor]] = {None: lambda y: y, "relu": torch.relu_}   # in place


def add_and_activate(y: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """Return act(y + shortcut), the end of a residual branch: (N, C, *S) -> (N, C, *S).

    Args:
        y: output of the branch.
        shortcut: tensor of y's shape; None adds nothing.
        act: "relu", or None for no activation.

    """
    return ACTS[act](y if shortcut is None else y + shortcut)


def add_and_activate_(y: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """Return the result of `add_and_activate`, written to y where possible.

    Call it only if y is not used afterwards, by a gradient for example.
    """
    operands = (y,) if shortcut is None else (y, shortcut)
    if may_overwrite(*operands):
        return ACTS_[act](y if shortcut is None else y.add_(shortcut))
    return add_and_activate(y, shortcut, act)


def may_overwrite(y: Tensor, *operands: Tensor) -> bool:
    """Whether a result computed from y and the operands may be written to y.

    It checks tensors, modes and dtypes, but not whether y is used elsewhere.
    """
    return is_plain(y, *operands) and all(operand.dtype == y.dtype for operand in operands)


fx.wrap("add_and_activate")   # calls from this file too, as ops/torch.py does with calls from blocks
