"""Where kernels("auto") takes a fused form: where a measurement that is recorded here says that it wins.

These kernels have not been run on a GPU yet: the table is empty, and "auto" is "eager". `python -m benchmarks wins`
prints it from the result files of runs on one.
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


WINS: Final[tuple[Win, ...]] = ()
LEAST: Final = least(WINS)
