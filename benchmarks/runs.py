"""What a run leaves behind: one JSON file with its conditions, and a row for every provider of every case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from attzoo import files

from .cases import Case
from .timer import Spread

SCHEMA: Final = 2
LEAST: Final = 0.05   # by which times differ, or are the same: code in another place in memory differs as much
STATUS: Final = ("timed", "unsteady", "wrong", "failed")


@dataclass(frozen=True)
class Provider:
    """Who computes a case.

    library: "attzoo", a peer ("timm", "MONAI", "torchvision"), "plain" for the same written directly in the framework,
    or "copy", which only copies the first input: what moving it once costs.
    backend: "torch", "tensorflow" or "jax"; Keras's on torch is "keras-torch".
    form: "eager"; "triton", the fused kernels; "compiled", "compiled, no layout" (layout_optimization=False),
    "compiled, channels last"; "fused", the U-Net with its norms folded in;
    for Keras "traced" and "jit".
    """

    library: str
    backend: str = "torch"
    form: str = "eager"

    def __str__(self) -> str:
        backend = [] if self.backend == "torch" else [self.backend]
        return " ".join([self.library, *backend, *([] if self.form == "eager" else [f"({self.form})"])])


COPY: Final = Provider("copy")
FUSED: Final = Provider("attzoo", form="triton")


@dataclass(frozen=True)
class Row:
    """One provider in one case.

    status: "timed"; "unsteady" where the copy or the control moved and repeating did not help; "wrong" when an output
    or a gradient was off, and "failed" when it raised: neither is timed, `why` says what happened.
    error: largest deviation of output and gradients from the float64 meaning, as a part of its norm.
    clock: "cpu", seconds of one thread's CPU time; "graph", of CUDA graphs replayed; "calls", from Python on CUDA.
    seconds: quartiles of a call. least, samples: the smallest and how many.
    copies: this provider's time / that of copying the first input, paired by rounds.
    ratio: this provider's time / the reference's, paired by rounds; control: the reference / itself in these rounds.
    reference: whom `ratio` is to, as str(Provider), None for rows without.
    kept: bytes that autograd keeps besides inputs and parameters; peak: most bytes of tensors alive besides inputs and
    weights in a training step.
    moved: bytes that cannot be avoided, each input read and each result written once; flops: twice the multiply-adds.
    """

    case: Case
    provider: Provider
    status: str
    why: str | None = None
    error: float | None = None
    clock: str = "cpu"
    seconds: Spread | None = None
    least: float | None = None
    samples: int = 0
    copies: Spread | None = None
    reference: str | None = None
    ratio: Spread | None = None
    control: Spread | None = None
    kept: int | None = None
    peak: int | None = None
    moved: int = 0
    flops: int = 0

    @property
    def verdict(self) -> str:
        """What the times say: "faster" or "slower" by LEAST or more, the quartiles of ratio and control apart."""
        if self.status != "timed" or self.ratio is None or self.control is None:
            return self.status
        if self.ratio.low > max(1.0, self.control.high) and self.ratio.median > 1 + LEAST:
            return "slower"
        below = self.ratio.high < min(1.0, self.control.low) and self.ratio.median < 1 / (1 + LEAST)
        return "faster" if below else "same"


@dataclass(frozen=True)
class Run:
    """A whole result file.

    suite: "quick", "full" or "kernels". device: "cpu" or "cuda". machine, versions, flags: name -> value, printable.
    ceilings: name -> number, what this machine can do: "copy GB/s", "L2 GB/s", "launch us".
    absent: package -> how to install it. left: cases that time ran out for, as str(Case).
    """

    suite: str
    device: str
    command: str
    date: str
    commit: str | None
    machine: Mapping[str, Any]
    versions: Mapping[str, str | None]
    flags: Mapping[str, Any]
    ceilings: Mapping[str, float]
    absent: Mapping[str, str]
    rows: Sequence[Row]
    left: Sequence[str] = field(default=())


def write(path: Path, run: Run) -> None:
    """Write a run as JSON; the file appears whole or not at all. Raises FileExistsError rather than replace a run."""
    vacant(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"schema": SCHEMA} | asdict(run) | {"rows": [_flat(row) for row in run.rows]}
    files.write(path, (json.dumps(whole, indent=1) + "\n").encode())


def vacant(path: Path) -> None:
    """Raise FileExistsError where there is a file."""
    if path.exists():
        raise FileExistsError(f"expected a new file for a run, got {path}, which exists: runs are never merged")


def read(path: Path) -> Run:
    """A run as `write` wrote it. Raises ValueError for what is no run of this schema."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"expected a run's JSON in {path}, got: {err}") from None
    if not isinstance(whole, dict) or whole.pop("schema", None) != SCHEMA:
        raise ValueError(f"expected a run of schema {SCHEMA} in {path}, got another or none: make it anew")
    try:
        return Run(**whole | {"rows": [_row(row) for row in whole["rows"]]})
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"expected a run of schema {SCHEMA} in {path}, got one with something missing: {err}") from err


def _flat(row: Row) -> dict[str, Any]:
    """A row as JSON has it, without what says nothing."""
    whole = asdict(row)
    del whole["case"]["forms"]
    return {name: value for name, value in whole.items() if value is not None}


def _row(flat: dict[str, Any]) -> Row:
    case = Case(**flat["case"] | {"shapes": tuple(map(tuple, flat["case"]["shapes"]))})
    spreads = {f.name: Spread(**flat[f.name]) for f in fields(Row) if "Spread" in str(f.type) and f.name in flat}
    row = Row(**flat | {"case": case, "provider": Provider(**flat["provider"])} | spreads)
    if row.status not in STATUS:
        raise TypeError(f"status {row.status!r}, known: {', '.join(STATUS)}")
    return row
