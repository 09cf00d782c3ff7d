"""Recorded wins, from result files: the rows of attzoo/fast/wins.py, which say where kernels("auto") takes kernels.

A fused form wins at a size where it is faster than attzoo's eager form beyond the control, on every clock, in every
case of that size: the GPU's own time alone would not do, where Python has to start what it runs. What failed, was wrong
or unsteady does not win. A row of the table says from which size on the form wins at all that were timed.
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
from .picking import against
from .runs import FUSED, Provider, Row, Run, read

EAGER: Final = Provider("attzoo")
Key = tuple[str, tuple[int, int], str, bool, bool]   # of a Win: block, capability, dtype, last, training


def table(files: Sequence[Path]) -> str:
    """The wins in result files, as the Python that stands in attzoo/fast/wins.py.

    Raises ValueError for no file, and for one of a run that was not on CUDA.
    """
    if not files:
        raise ValueError("expected at least one result file, got none")
    found = wins({path.name: read(path) for path in files})
    if not found:
        return "WINS: Final[tuple[Win, ...]] = ()\n"
    return "\n".join(["WINS: Final[tuple[Win, ...]] = (", *map(_line, found), ")\n"])


def _line(win: Win) -> str:
    what = f'"{win.block}", {win.capability}, "{win.dtype}", last={win.last}, training={win.training}'
    return f'    Win({what}, least={win.least},\n        source="{win.source}"),'


def wins(runs: Mapping[str, Run]) -> list[Win]:
    """The wins in runs, by the names of their files. Raises ValueError for a run that was not on CUDA."""
    sizes: dict[Key, dict[int, bool]] = {}
    sources: dict[Key, list[str]] = {}
    for name, run in runs.items():
        capability = _capability(name, run)
        for row in run.rows:
            if row.provider == FUSED and row.case.network is None and row.case.mode in BOTH:
                key, size = _key(row, capability), prod(row.case.shapes[0])
                of_key = sizes.setdefault(key, {})
                of_key[size] = of_key.get(size, True) and won(row, run.rows)
                sources[key] = list(dict.fromkeys([*sources.get(key, []), name]))
    leasts = {key: least(of_key) for key, of_key in sizes.items()}
    return [Win(*key, size, ", ".join(sources[key])) for key, size in sorted(leasts.items()) if size is not None]


def _capability(name: str, run: Run) -> tuple[int, int]:
    """Of the run's GPU."""
    if run.device != "cuda" or "capability" not in run.machine:
        raise ValueError(f"expected a run on CUDA, got one on {run.device} in {name}")
    major, minor = map(int, str(run.machine["capability"]).split("."))
    return major, minor


def _key(row: Row, capability: tuple[int, int]) -> Key:
    case = row.case
    kind = locate(case.block).partition(":")[2]
    return kind, capability, case.dtype, case.layout == "channels last", case.mode == "training"


def won(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row of the fused form is faster than the eager form of the same case, on the same clock."""
    plain = [other for other in rows if (other.provider, other.case, other.clock) == (EAGER, row.case, row.clock)]
    if not plain or plain[0].status != "timed":
        return False
    return replace(row, ratio=against(row, plain[0])).verdict == "faster"


def least(of_size: Mapping[int, bool]) -> int | None:
    """The least size from which on all win; None where the largest does not."""
    found = None
    for size in sorted(of_size, reverse=True):
        if not of_size[size]:
            break
        found = size
    return found
