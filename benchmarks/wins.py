"""Compute the table of recorded wins in attzoo/fast/wins.py, which kernels("auto") uses, from result files.

The fused form wins at an input size if it is faster than attzoo's eager form beyond the noise, on both clocks, in every
case of that size. The GPU's own time alone is not enough, because Python has to launch the kernels. Failed, wrong and
unsteady rows do not win. A row of the table has the smallest size from which on the fused form wins at all timed sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Final

from attzoo.fast.wins import Win
from attzoo.registry import locate

from .cases import BOTH
from .runs import FUSED, Provider, Row, Run, read
from .selection import time_ratio

EAGER: Final = Provider("attzoo")
Key = tuple[str, tuple[int, int], str, bool, bool]   # of a Win: block, capability, dtype, channels_last, training


def table(files: Sequence[Path]) -> str:
    """Return the wins in result files as Python source for attzoo/fast/wins.py.

    Raises ValueError if there is no file or a run was not on CUDA.
    """
    if not files:
        raise ValueError("expected at least one result file, got none")
    rows = wins({path.name: read(path) for path in files})
    if not rows:
        return "WINS: Final[tuple[Win, ...]] = ()\n"
    return "\n".join(["WINS: Final[tuple[Win, ...]] = (", *map(_line, rows), ")\n"])


def _line(win: Win) -> str:
    """Return the Python source of an entry of the table."""
    key = f'"{win.block}", {win.capability}, "{win.dtype}", channels_last={win.channels_last}, training={win.training}'
    return f'    Win({key}, min_elements={win.min_elements},\n        source="{win.source}"),'


def wins(runs: Mapping[str, Run]) -> list[Win]:
    """Return the cases in which fused kernels win, from runs by the name of their file.

    Raises ValueError if a run was not on CUDA.
    """
    sizes: dict[Key, dict[int, bool]] = {}   # size of x -> whether the fused form wins
    sources: dict[Key, list[str]] = {}
    for name, run in runs.items():
        capability = _capability(name, run)
        for row in run.rows:
            if row.provider == FUSED and row.case.network is None and row.case.mode in BOTH:
                key, size = _key(row, capability), prod(row.case.shapes[0])
                wins_by_size = sizes.setdefault(key, {})
                wins_by_size[size] = wins_by_size.get(size, True) and won(row, run.rows)
                sources[key] = list(dict.fromkeys([*sources.get(key, []), name]))
    smallest = {key: least(wins_by_size) for key, wins_by_size in sizes.items()}
    return [Win(*key, size, ", ".join(sources[key])) for key, size in sorted(smallest.items()) if size is not None]


def _capability(name: str, run: Run) -> tuple[int, int]:
    """Return the compute capability of the run's GPU. Raises ValueError if the run was not on CUDA."""
    if run.device != "cuda" or "capability" not in run.machine:
        raise ValueError(f"expected a run on CUDA, got one on {run.device} in {name}: leave this file out")
    major, minor = map(int, str(run.machine["capability"]).split("."))
    return major, minor


def _key(row: Row, capability: tuple[int, int]) -> Key:
    """Return the fields of `Win` that identify the case of a row: block, capability, dtype, layout, and training."""
    case = row.case
    class_name = locate(case.block).partition(":")[2]
    return class_name, capability, case.dtype, case.layout == "channels last", case.mode == "training"


def won(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row of the fused form is faster, beyond the noise, than the eager row of the same case and clock.

    rows: the rows of the run.
    """
    eager_rows = [
        other_row
        for other_row in rows
        if (other_row.provider, other_row.case, other_row.clock) == (EAGER, row.case, row.clock)
    ]
    if not eager_rows or eager_rows[0].status != "timed":
        return False
    return replace(row, ratio=time_ratio(row, eager_rows[0])).verdict == "faster"


def least(wins_by_size: Mapping[int, bool]) -> int | None:
    """Return the smallest size from which on the kernels win at all sizes; None if they do not win at the largest.

    wins_by_size: whether the kernels win at each timed size.
    """
    smallest = None
    for size in sorted(wins_by_size, reverse=True):
        if not wins_by_size[size]:
            break
        smallest = size
    return smallest
