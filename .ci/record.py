"""Record test runs as rows of docs/versions.json.

python .ci/record.py NAME JUNIT_XML: print the row of the current environment: the installed versions, the processor,
and the counts of tests in pytest's JUnit file.
python .ci/record.py --join FOLDER FILE: add the rows in a folder to the file. A row replaces the one with the same name
and Python version.
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
    """Return the processor's model name from /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def installed(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def row(name: str, junit: Path) -> dict[str, object]:
    """Return the row of the current environment with this name and this JUnit file."""
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
    """Add the rows in a folder to the file of all rows."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    rows += [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    by_key = {(row["name"], row["python"].rpartition(".")[0]): row for row in rows}
    file.write_text(json.dumps([by_key[key] for key in sorted(by_key)], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--join":
        join(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit()
    print(json.dumps(row(sys.argv[1], Path(sys.argv[2])), indent=2))
