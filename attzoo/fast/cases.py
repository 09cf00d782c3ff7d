"""What a block says of its kernels: calls that between them launch every one of them, and how fast they are to be.

Tests compile the calls and compare them with float64; the benchmark sets timings beside the goals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class KernelCase:
    """One way to call a block, listed as CASES in the module of its kernels.

    Args:
        arguments: of the block, beside channels.
        act: the activation at the end of a residual branch, with a shortcut; None for a plain call.
        coarse: how many times coarser than x the grids of further inputs are, along each axis.
        exact: whether products of float32 are computed without TF32.
        rare: whether only a run over every case compiles it.
        starts: how many kernels and operators that compute a call starts, in inference, in the forward pass of training
            and in the backward pass; None where that is not stated. The table in docs/kernels.md is made of these.

    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    act: str | None = None
    coarse: int = 1
    exact: bool = False
    rare: bool = False
    starts: tuple[int, int, int] | None = None


class Marks(NamedTuple):
    """At most so many copies of x; at least so many times as fast as the eager peer, and as the best of it compiled."""

    copies: float
    eager: float
    compiled: float


@dataclass(frozen=True)
class Goal:
    """How fast some calls of a block are to be on an H200, at the sizes of the benchmark's suites.

    Args:
        modes: "inference", "forward" or "backward".
        accept: what is accepted.
        aim: what is aimed at.
        sides: the sizes of x along its last axis that the goal is for; empty for any.
        arguments: values of the block's arguments that the goal is for; other arguments may have any value.
        coarse: whether the goal is for further inputs of a smaller spatial size than x.

    """

    modes: tuple[str, ...]
    accept: Marks
    aim: Marks
    sides: tuple[int, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    coarse: bool = False


@dataclass(frozen=True)
class Goals:
    """The goals of a block, listed as GOALS of `goals.py` in its folder.

    Args:
        calls: goals for calls of the block alone.
        resnet50: the part of a plain ResNet-50's throughput in training that is to be left with the block in it.

    """

    calls: tuple[Goal, ...] = ()
    resnet50: float | None = None
