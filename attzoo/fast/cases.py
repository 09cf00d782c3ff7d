"""Calls of a block that between them launch every kernel that it has: what tests compile and compare with float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KernelCase:
    """One way to call a block, listed as CASES in the module of its kernels.

    Args:
        arguments: of the block, beside channels.
        act: the activation at the end of a residual branch, with a shortcut; None for a plain call.
        coarse: how many times coarser than x the grids of further inputs are, along each axis.
        exact: whether products of float32 are computed without TF32.
        rare: whether only a run over every case compiles it.

    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    act: str | None = None
    coarse: int = 1
    exact: bool = False
    rare: bool = False
