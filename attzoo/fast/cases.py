"""Test cases and speed goals of a block's kernels.

The cases of a block together launch all of its kernels. Tests compile them and compare the results with float64. The
benchmark compares timings with the goals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class KernelCase:
    """One way to call a block, for tests of its kernels. CASES in the module of the kernels lists them.

    Args:
        arguments: arguments of the block, besides `channels`.
        act: the activation at the end of a residual branch, with a shortcut; None for a plain call.
        coarse: factor by which further inputs are smaller than x along each spatial axis.
        exact: whether float32 products are computed without TF32.
        rare: whether the case is compiled only with `tests/aot.py --every`.
        launches: number of kernels and operators launched in inference, in the forward pass of training and in the
            backward pass; None if unspecified. The table in docs/kernels.md is generated from these.

    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    act: str | None = None
    coarse: int = 1
    exact: bool = False
    rare: bool = False
    launches: tuple[int, int, int] | None = None


class Marks(NamedTuple):
    """Limits of a speed goal.

    Attributes:
        copies: largest time, as a multiple of the time of copying x.
        eager: smallest speedup over another library's eager block.
        compiled: smallest speedup over another library's block under torch.compile.

    """

    copies: float
    eager: float
    compiled: float


@dataclass(frozen=True)
class Goal:
    """A speed goal for calls of a block on an H200, at the sizes of the benchmark's suites.

    Args:
        modes: the modes that the goal applies to, of "inference", "forward" and "backward".
        accept: required limits.
        aim: desired limits.
        sides: sizes of x along its last axis that the goal applies to; empty for any.
        arguments: values of the block's arguments that the goal applies to; other arguments may have any value.
        coarse: whether the goal applies to calls with a further input spatially smaller than x, or to all other calls.

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
        resnet50: minimum training throughput of a ResNet-50 with the block, as a fraction of a plain ResNet-50's.

    """

    calls: tuple[Goal, ...] = ()
    resnet50: float | None = None
