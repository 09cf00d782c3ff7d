"""What a benchmark leaves behind: one JSON file that says how it was made, and a Markdown table drawn from it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from .timer import Spread

SCHEMA: Final = 1


@dataclass(frozen=True)
class Row:
    """One block beside one peer, in one mode, for inputs of one shape.

    status: "timed"; "wrong" when an output or gradient was off, and nothing was timed; "absent" without the peer.
    error: largest deviation of ours and of the peer's from the float64 reference, as a part of its largest value.
    ours, theirs: median CPU seconds a call. ratio: ours / theirs; control: the peer / itself; both round by round.
    saved: bytes that autograd keeps for the backward pass besides inputs and parameters, ours and the peer's.
    peak: the most bytes of tensors alive at once in a training step besides weights, ours and the peer's.
    """

    block: str
    peer: str
    shapes: tuple[tuple[int, ...], ...]
    mode: str
    status: str
    error: tuple[float, float] | None = None
    ours: float | None = None
    theirs: float | None = None
    ratio: Spread | None = None
    control: Spread | None = None
    saved: tuple[int, int] | None = None
    peak: tuple[int, int] | None = None

    @property
    def verdict(self) -> str:
        """What the times say: "faster" or "slower" where the quartiles of ratio and control do not overlap."""
        if self.ratio is None or self.control is None:
            return self.status
        if not steady(self.control):
            return "unsteady"
        if self.ratio.low > max(1.0, self.control.high):
            return "slower"
        return "faster" if self.ratio.high < min(1.0, self.control.low) else "same"


def steady(control: Spread) -> bool:
    """Whether a provider timed against itself came out equal, within a tenth."""
    return 0.9 <= control.median <= 1.1


def facts(packages: Sequence[str]) -> dict[str, Any]:
    """Machine and versions, without names or paths of the machine."""
    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "load": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "commit": _commit(),
    }


def write(path: Path, report: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write a report and its rows as JSON, and the table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"schema": SCHEMA, **report, "rows": [asdict(row) | {"verdict": row.verdict} for row in rows]}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(whole))


def read(path: Path) -> dict[str, Any]:
    """A report as `write` wrote it. Raises ValueError for another schema."""
    report: dict[str, Any] = json.loads(path.read_text())
    if report.get("schema") != SCHEMA:
        raise ValueError(f"expected a report of schema {SCHEMA}, got {report.get('schema')}")
    return report


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """The rows of a report that `read` gave."""
    names = [field.name for field in fields(Row)]
    rows = [{name: row.get(name) for name in names} for row in report["rows"]]
    for row in rows:
        row["shapes"] = tuple(map(tuple, row["shapes"]))
        for name in ("error", "saved", "peak"):
            row[name] = row[name] and tuple(row[name])
        for name in ("ratio", "control"):
            row[name] = row[name] and Spread(**row[name])
    return [Row(**row) for row in rows]


def table(report: Mapping[str, Any]) -> str:
    """A report as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items() if number)
    machine = report["machine"]
    lines = [
        f"# {report['title']}",
        "",
        report["method"],
        "",
        f"- `{report['command']}`, {report['date']}, commit {report['commit']}",
        f"- {machine['processor']}, {machine['cores']} cores, {machine['system']}; load {machine['load']}",
        f"- {versions}",
        *(f"- not installed: {name}" for name, number in report["versions"].items() if not number),
        "",
        "| block | beside | input | mode | ours ms | peer ms | ours / peer | peer / itself | kept MiB | peak MiB"
        " | verdict |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    return "\n".join(lines + [line(row) for row in rows_of(report)]) + "\n"


def line(row: Row) -> str:
    """A row of the table."""
    shape = "x".join(map(str, row.shapes[0]))
    cells = [row.block, row.peer, shape, row.mode]
    if row.ratio is None or row.control is None or row.ours is None or row.theirs is None:
        return "| " + " | ".join([*cells, *[""] * 6, row.status]) + " |"
    numbers = [f"{row.ours * 1e3:.2f}", f"{row.theirs * 1e3:.2f}", _spread(row.ratio), _spread(row.control)]
    memory = [" / ".join(f"{number / 2**20:.1f}" for number in pair or ()) for pair in (row.saved, row.peak)]
    return "| " + " | ".join([*cells, *numbers, *memory, row.verdict]) + " |"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str | None:
    """The commit that was measured, marked where the working tree differs from it."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()
