"""Where kernels("auto") takes a fused form: where a measurement that is recorded here says that it wins.

`python -m benchmarks wins` prints the table from the result files of runs on a GPU, in benchmarks/results. So far few
cases have been timed, on one kind of GPU; everywhere else "auto" takes the eager form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Win:
    """One recorded win.

    block: class name. capability: of the GPU, (9, 0) say. dtype: "float32". last: whether channels last.
    training: whether with gradients. least: numbers in the first input, from which on. source: result file.
    """

    block: str
    capability: tuple[int, int]
    dtype: str
    last: bool
    training: bool
    least: int
    source: str


def least(wins: Iterable[Win]) -> dict[tuple[object, ...], int]:
    """From how many numbers on, by what else a call must be: this is asked at every call."""
    return {(it.block, it.capability, it.dtype, it.last, it.training): it.least for it in wins}


WINS: Final[tuple[Win, ...]] = (
    Win("AttentionGate", (9, 0), "bfloat16", last=False, training=False, least=33554432,
        source="2026-11-27_cuda_smoke_d55b325.json"),
    Win("AttentionGate", (9, 0), "float32", last=False, training=False, least=33554432,
        source="2026-11-27_cuda_smoke_d55b325.json"),
    Win("SE", (9, 0), "float32", last=False, training=False, least=67108864,
        source="2026-11-27_cuda_smoke_d55b325.json, 2026-11-27_cuda_wins_03960dd.json"),
)   # fmt: skip
LEAST: Final = least(WINS)
