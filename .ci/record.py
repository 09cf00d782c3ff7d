"""The rows of docs/versions.json.

python .ci/record.py NAME JUNIT_XML: print the row of the environment that this runs in: the versions that are
installed, the processor, and how many tests the JUnit file of pytest counts.
python .ci/record.py --join FOLDER FILE: put the rows in a folder into the file; a row replaces that of the same name
and Python.
"""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

PACKAGES = ("torch", "triton", "keras", "tensorflow", "jax", "numpy", "safetensors")


def processor() -> str:
    """The processor's name, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def installed(package: str) -> str | None:
    """A package's version, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def row(name: str, junit: Path) -> dict[str, object]:
    """The row of one environment."""
    suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    count = {key: sum(int(suite.attrib[key]) for suite in suites) for key in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return {
        "name": name,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "python": platform.python_version(),
        **{package: installed(package) for package in PACKAGES},
        "passed": count["tests"] - count["skipped"] - failed,
        "skipped": count["skipped"],
        "failed": failed,
        "seconds": round(sum(float(suite.attrib["time"]) for suite in suites)),
    }


def join(folder: Path, file: Path) -> None:
    """Put the rows in a folder into the file of all rows."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    rows += [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    by_key = {(row["name"], row["python"].rpartition(".")[0]): row for row in rows}
    file.write_text(json.dumps([by_key[key] for key in sorted(by_key)], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--join":
        join(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit()
    print(json.dumps(row(sys.argv[1], Path(sys.argv[2])), indent=2))
