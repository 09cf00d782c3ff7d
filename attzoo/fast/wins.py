"""Recorded measurements in which fused kernels were faster; `kernels("auto")` uses the kernels in these cases only.

`python -m benchmarks wins` prints the table from the result files of GPU runs in benchmarks/results. Few cases have
been timed so far, on one type of GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Win:
    """A recorded case in which the kernels were faster.

    Args:
        block: class name.
        capability: compute capability of the GPU, for example (9, 0).
        dtype: name of the dtype, for example "float32".
        channels_last: whether the input is channels last.
        training: whether gradients are computed.
        min_elements: minimum number of elements of the first input.
        source: result files.

    """

    block: str
    capability: tuple[int, int]
    dtype: str
    channels_last: bool
    training: bool
    min_elements: int
    source: str


def min_elements_by_case(wins: Iterable[Win]) -> dict[tuple[object, ...], int]:
    """Return the minimum number of elements by (block, capability, dtype, channels_last, training)."""
    return {(win.block, win.capability, win.dtype, win.channels_last, win.training): win.min_elements for win in wins}


WINS: Final[tuple[Win, ...]] = (
    Win("AttentionGate", (9, 0), "bfloat16", channels_last=False, training=False, min_elements=33554432,
        source="2026-11-27_cuda_smoke_d55b325.json"),
    Win("AttentionGate", (9, 0), "float32", channels_last=False, training=False, min_elements=33554432,
        source="2026-11-27_cuda_smoke_d55b325.json"),
    Win("SE", (9, 0), "float32", channels_last=False, training=False, min_elements=67108864,
        source="2026-11-27_cuda_smoke_d55b325.json, 2026-11-27_cuda_wins_03960dd.json"),
)   # fmt: skip
MIN_ELEMENTS: Final = min_elements_by_case(WINS)
