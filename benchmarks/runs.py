"""The result file of a run: JSON with the conditions, and a row for every provider of every case."""

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
MIN_DIFFERENCE: Final = 0.05   # relative, of "faster" and "slower": other code addresses change times as much
STATUS: Final = ("timed", "unsteady", "wrong", "failed")


@dataclass(frozen=True)
class Provider:
    """An implementation that computes a case.

    Attributes:
        library: "attzoo"; a peer ("timm", "MONAI", "torchvision"); "plain", the same written directly in the framework;
            or "copy", which only copies the first input.
        backend: "torch", "tensorflow" or "jax"; "keras-torch" for Keras on torch.
        form: "eager"; "triton", the fused kernels; "compiled"; "compiled, no layout" (layout_optimization=False);
            "compiled, channels last"; "fused", the U-Net with its norms folded into the convolutions; for Keras also
            "traced" and "jit".

    """

    library: str
    backend: str = "torch"
    form: str = "eager"

    def __str__(self) -> str:
        """Return the library, with the backend if it is not torch, and the form if it is not eager."""
        backend = [] if self.backend == "torch" else [self.backend]
        return " ".join([self.library, *backend, *([] if self.form == "eager" else [f"({self.form})"])])


COPY: Final = Provider("copy")
FUSED: Final = Provider("attzoo", form="triton")


@dataclass(frozen=True)
class Row:
    """The result of one provider in one case.

    Attributes:
        case: the case.
        provider: the provider.
        status: "timed"; "unsteady", timed but varying too much, also when timed again; "wrong", not timed because the
            output or a gradient has too large an error; "failed", not timed because an exception was raised.
        why: the reason for a status other than "timed".
        error: largest relative error of output and gradients, by norm, compared with float64.
        clock: "cpu", the CPU time of one thread; "graph", replayed CUDA graphs; "calls", calls from Python on CUDA.
        seconds: quartiles of the seconds per call.
        least: least seconds per call.
        samples: number of samples.
        copies: the provider's time / the time of copying the first input, paired by rounds.
        reference: str(Provider) of the reference; None for rows without one.
        ratio: the provider's time / the reference's, paired by rounds.
        control: the reference's time / its own in another turn, paired by rounds.
        kept: bytes that autograd saves for the backward pass, besides inputs and parameters.
        peak: most bytes of tensors in use at once in a training step, besides inputs and weights.
        moved: least bytes to read and write, each input, weight and result once.
        traffic: bytes that the operators of a call read and write, as `memory.operator_bytes` counts; None if unknown.
        flops: floating-point operations, twice the multiply-adds.
        parameters: number of trainable parameters of the block.

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
    traffic: int | None = None
    flops: int = 0
    parameters: int = 0

    @property
    def verdict(self) -> str:
        """Return whether the provider is "faster" or "slower" than the reference, or takes the "same" time.

        "slower" requires that the median of `ratio` exceeds 1 + MIN_DIFFERENCE, and that the lower quartile of `ratio`
        exceeds 1 and the upper quartile of `control`; "faster" requires the same of the inverse ratios. Return `status`
        if the row was not timed or has no ratio.
        """
        if self.status != "timed" or self.ratio is None or self.control is None:
            return self.status
        if self.ratio.low > max(1.0, self.control.high) and self.ratio.median > 1 + MIN_DIFFERENCE:
            return "slower"
        faster = self.ratio.high < min(1.0, self.control.low) and self.ratio.median < 1 / (1 + MIN_DIFFERENCE)
        return "faster" if faster else "same"


@dataclass(frozen=True)
class Run:
    """The contents of a result file.

    Attributes:
        suite: name of the suite.
        device: "cpu" or "cuda".
        command: the command line.
        date: start of the run, ISO 8601.
        commit: the measured commit; None if unknown.
        machine: properties of the machine, such as its processor, by name.
        versions: versions of packages by name; None if not installed.
        flags: settings that affect speed, by name.
        ceilings: limits of the machine by name, such as "copy GB/s".
        absent: install command by package that is not installed.
        rows: the results.
        left: cases for which there was no time, as str(Case).
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
    """Write a run as JSON, atomically. Raises FileExistsError if the file exists."""
    check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {"schema": SCHEMA} | asdict(run) | {"rows": [_to_json(row) for row in run.rows]}
    files.write(path, (json.dumps(contents, indent=1) + "\n").encode())


def check_new(path: Path) -> None:
    """Raise FileExistsError if the file exists."""
    if path.exists():
        raise FileExistsError(f"expected a new result file, got {path}, which exists; pass another file with --out")


def read(path: Path) -> Run:
    """Read a result file. Raises ValueError if it is not a result file of this schema."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"expected a result file in JSON, got {path}: {err}; run it again") from None
    schema = contents.pop("schema", None) if isinstance(contents, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"expected a result file of schema {SCHEMA}, got schema {schema} in {path}; run it again")
    try:
        return Run(**contents | {"rows": [_from_json(row) for row in contents["rows"]]})
    except (KeyError, TypeError, AttributeError) as err:
        got = f"an invalid one in {path}: {err}; run it again"
        raise ValueError(f"expected a result file of schema {SCHEMA}, got {got}") from err


def _to_json(row: Row) -> dict[str, Any]:
    """Return a row as a dict for JSON, without fields that are None and without the case's forms."""
    values = asdict(row)
    del values["case"]["forms"]
    return {name: value for name, value in values.items() if value is not None}


def _from_json(values: dict[str, Any]) -> Row:
    """Return the row of a dict from JSON. Raises KeyError or TypeError if fields are missing or invalid."""
    case = Case(**values["case"] | {"shapes": tuple(map(tuple, values["case"]["shapes"]))})
    spreads = {
        field.name: Spread(**values[field.name])
        for field in fields(Row)
        if "Spread" in str(field.type) and field.name in values
    }
    row = Row(**values | {"case": case, "provider": Provider(**values["provider"])} | spreads)
    if row.status not in STATUS:
        raise TypeError(f"status must be one of {', '.join(STATUS)}, got {row.status!r}")
    return row
