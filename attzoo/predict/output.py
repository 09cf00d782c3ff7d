"""A folder that results are written to: inputs are never replaced, nor files of others unless that is asked for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from ..files import digest_of, open_regular, usable_folder, write

RECORD: Final = ".attzoo.sha256"   # in the format of sha256sum
ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r"})   # as sha256sum has them in names
FROM: Final = "# from "   # before a line: as JSON, what the file was made of
HEADER: Final = "# files that attzoo wrote here, as sha256sum lists them"


def _line(name: str, digest: str, source: str | None) -> str:
    """The line of a file in a record, after one of what it was made of, where that is known."""
    line, before = f"{digest}  {name}", "" if source is None else f"{FROM}{json.dumps(source)}\n"
    return f"{before}{line}\n" if (escaped := line.translate(ESCAPES)) == line else f"{before}\\{escaped}\n"


def _entry(line: str) -> tuple[str, str]:
    """Name and digest from a line of a record; one that begins with a backslash has escapes in the name."""
    digest, _, name = line.removeprefix("\\").partition("  ")
    if line.startswith("\\"):
        name = re.sub(r"\\([\\nr])", lambda found: {"\\": "\\", "n": "\n", "r": "\r"}[found[1]], name)
    return name, digest


class Output:
    """A folder for results, and a record in it of what was written there, made of what, and not changed since.

    The record has the digest of a file before the file is there: what a full disk or a killed process leaves is known
    as attzoo's.
    inputs: files that may not be replaced. overwrite: whether other files that are there may be.
    Raises NotADirectoryError where a file is in the way of the folder, ValueError for a record of somebody else's,
    OSError for one that is no file.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path], overwrite: bool = False) -> None:
        self.folder = usable_folder(folder)
        self.inputs = {_identity(path): path for path in inputs}
        self.overwrite = overwrite
        self.record = folder / RECORD
        self.written: dict[str, set[str]] = {}   # the digests that a file may have
        self.sources: dict[str, str] = {}        # what a file was made of
        self._is_whole = False                   # the record: lines can be added
        self._tidied: set[Path] = set()
        if self.record.exists():
            self._read()

    def check(self, paths: Iterable[Path], source: Path | None = None) -> None:
        """Raise FileExistsError unless all of these may be written, as made of `source`.

        What was made of another source of the same name is the user's, until that says to replace it.
        """
        for path in paths:
            if not path.exists():
                continue
            if not path.is_file():
                raise FileExistsError(f"expected a file or nothing at {path}, got something else: set another --out")
            if its := self.inputs.get(_identity(path)):
                raise FileExistsError(f"expected to replace no input, got {path}, which is {its}: set another --out")
            if self.overwrite:
                continue
            fix = "choose another --out, or set --overwrite"
            if not self._is_ours(path):
                raise FileExistsError(f"expected to replace only what attzoo wrote, got another file at {path}: {fix}")
            if source and (other := self.sources.get(self._name(path), _full(source))) != _full(source):
                got = f"what it made of {other} at {path}"
                raise FileExistsError(f"expected to replace only what attzoo made of {source}, got {got}: {fix}")

    def write(self, results: Mapping[Path, bytes], source: Path | None = None, without: Iterable[Path] = ()) -> None:
        """Write the results of one image, `source`, and remove what attzoo wrote at the paths `without`.

        Earlier results go before the first new one is there, so that those of two calls never lie side by side. Raises
        OSError, which names the file, where one cannot be written.
        """
        digests = {self._name(path): sha256(content).hexdigest() for path, content in results.items()}
        self._note(digests, None if source is None else _full(source))
        for path in (*list(results)[1:], *without):
            if path.is_file() and self._is_ours(path) and _identity(path) not in self.inputs:
                path.unlink()
        for path, content in results.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, content, tidy=path.parent not in self._tidied)
            self._tidied.add(path.parent)

    def finish(self) -> None:
        """Leave in the record what is in the folder, each file once."""
        there = {name: self.folder / name for name in self.written if (self.folder / name).is_file()}
        several = {name for name, digests in self.written.items() if len(digests) > 1}
        if several or len(there) < len(self.written):
            self.written = {name: self.written[name] for name in there}
            for name in several & there.keys():
                self.written[name] &= {digest_of(there[name])}
            self._write_record()

    def _read(self) -> None:
        """Take over what the record says; one that a full disk or a kill has cut is of use up to there."""
        with open_regular(self.record) as file:
            header, *lines = os.fsdecode(file.read()).split("\n")
        if header != HEADER if lines else not HEADER.startswith(header):
            raise ValueError(f"expected a record of what attzoo wrote in {self.record}, got another file")
        self._is_whole = lines[-1:] == [""]
        source = None
        for line in filter(None, lines[:-1]):
            if line.startswith(FROM):
                with suppress(ValueError):
                    source = str(json.loads(line.removeprefix(FROM)))
                continue
            name, digest = _entry(line)
            self.written.setdefault(name, set()).add(digest)
            if source is not None:
                self.sources[name], source = source, None

    def _note(self, digests: Mapping[str, str], source: str | None) -> None:
        """Record files that are about to be written, made of `source`."""
        known, made = self.written, self.sources
        new = {name: digest for name, digest in digests.items() if digest not in known.get(name, ())}
        new |= {name: digest for name, digest in digests.items() if made.get(name) != source}
        for name, digest in new.items():
            self.written.setdefault(name, set()).add(digest)
            if source is not None:
                self.sources[name] = source
        if not self._is_whole:
            self._write_record()
        elif new:
            self._add(os.fsencode("".join(_line(name, digest, source) for name, digest in new.items())))

    def _write_record(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = ((name, digest) for name, digests in self.written.items() for digest in sorted(digests))
        lines = (_line(name, digest, self.sources.get(name)) for name, digest in entries)
        write(self.record, os.fsencode("".join((f"{HEADER}\n", *lines))))
        self._is_whole = True

    def _add(self, lines: bytes) -> None:
        """Put lines at the record's end, all of them or, on an error, none."""
        with self.record.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                while lines:
                    lines = lines[file.write(lines) :]
                os.fsync(file.fileno())
            except OSError as err:
                with suppress(OSError):
                    file.truncate(size)
                raise OSError(err.errno, err.strerror, str(self.record)) from err

    def _is_ours(self, path: Path) -> bool:
        """Whether attzoo wrote a file, and nobody has changed it since."""
        return digest_of(path) in self.written.get(self._name(path), ())

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _full(source: Path) -> str:
    """The full name of an image."""
    return str(source.resolve())


def _identity(path: Path) -> tuple[int, int]:
    """What links to one file share."""
    about = path.stat()
    return about.st_dev, about.st_ino
