"""A folder that results are written to: inputs are never replaced, nor files of others unless that is asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ..files import digest_of, usable_folder

RECORD: Final = ".attzoo.sha256"   # in the format of sha256sum
ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r"})   # as sha256sum has them in names
HEADER: Final = "# files that attzoo wrote here, as sha256sum lists them"


def _entry(line: str) -> tuple[str, str]:
    """Name and digest from a line of a record; one that begins with a backslash has escapes in the name."""
    digest, _, name = line.removeprefix("\\").partition("  ")
    if line.startswith("\\"):
        name = re.sub(r"\\([\\nr])", lambda found: {"\\": "\\", "n": "\n", "r": "\r"}[found[1]], name)
    return name, digest


class Output:
    """A folder for results, and a record in it of what was written there and not changed since.

    inputs: files that may not be replaced. overwrite: whether other files that are there may be.
    Raises NotADirectoryError where a file is in the way of the folder, ValueError for a record of somebody else's.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path], overwrite: bool = False) -> None:
        self.folder = usable_folder(folder)
        self.inputs = {_identity(path): path for path in inputs}
        self.overwrite = overwrite
        self.record = folder / RECORD
        self.written: dict[str, str] = {}
        if self.record.is_file():
            header, *lines = os.fsdecode(self.record.read_bytes()).split("\n")
            if header != HEADER:
                raise ValueError(f"expected a record of what attzoo wrote in {self.record}, got another file")
            self.written = dict(map(_entry, filter(None, lines)))

    def check(self, paths: Iterable[Path]) -> None:
        """Raise FileExistsError unless all of these may be written."""
        for path in paths:
            if not path.exists():
                continue
            if not path.is_file():
                raise FileExistsError(f"expected a file or nothing at {path}, got something else: set another --out")
            if source := self.inputs.get(_identity(path)):
                raise FileExistsError(f"expected to replace no input, got {path}, which is {source}: set another --out")
            if not (self.overwrite or self.written.get(self._name(path)) == digest_of(path)):
                fix = "choose another --out, or set --overwrite"
                raise FileExistsError(f"expected to replace only what attzoo wrote, got another file at {path}: {fix}")

    def note(self, path: Path) -> None:
        """Record that a file was written."""
        name, digest = self._name(path), digest_of(path)
        if self.written.get(name) == digest:
            return
        is_new = not self.record.exists()
        line = f"{digest}  {name}"
        if (escaped := line.translate(ESCAPES)) != line:
            line = f"\\{escaped}"
        with self.record.open("ab") as file:
            file.write(os.fsencode((f"{HEADER}\n" if is_new else "") + f"{line}\n"))
        self.written[name] = digest

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _identity(path: Path) -> tuple[int, int]:
    """What links to one file share."""
    about = path.stat()
    return about.st_dev, about.st_ino
