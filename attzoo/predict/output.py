"""Output folders with a record of the files that attzoo wrote, so that other files are not replaced."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import Final

from ..files import PREFIX, digest_of, locked, open_regular, usable_folder, write

RECORD: Final = ".attzoo.sha256"   # name of the record, a text file in the format of sha256sum
LOCK: Final = f"{PREFIX}record-lock"
WAIT: Final = 0.01   # seconds until the next attempt to lock the record
ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r"})   # of names, as sha256sum writes them
FROM: Final = "# from "   # before the line of a file: the path, as JSON, of the image that the file was computed from
HEADER: Final = "# files that attzoo wrote here, as sha256sum lists them"


def _record_lines(name: str, digest: str, source: str | None) -> str:
    """Return the lines of a file in the record: one for its source, unless that is None, and one for the file.

    Args:
        name: the path of the file relative to the output folder.
        digest: the SHA-256 of its content, in hexadecimal digits.
        source: the path of the image that it was computed from.
    """
    line, source_line = f"{digest}  {name}", "" if source is None else f"{FROM}{json.dumps(source)}\n"
    escaped = line.translate(ESCAPES)
    return f"{source_line}{line}\n" if escaped == line else f"{source_line}\\{escaped}\n"


def _parse_line(line: str) -> tuple[str, str]:
    """Return the name and the digest in a line of the record. A backslash at its start marks escapes in the name."""
    digest, _, name = line.removeprefix("\\").partition("  ")
    if line.startswith("\\"):
        name = re.sub(r"\\([\\nr])", lambda match: {"\\": "\\", "n": "\n", "r": "\r"}[match[1]], name)
    return name, digest


class Output:
    """An output folder, and a record in it of the files that attzoo wrote there.

    The record has the digest (SHA-256) and the source of each file: the image that the file was computed from. A digest
    is recorded before the file is written, so that files left by a full disk or a killed process are recognized as
    attzoo's. Processes that write into one folder lock the record to change it.

    Args:
        folder: the output folder.
        inputs: files that are never replaced.
        overwrite: whether files that attzoo did not write may be replaced, except `inputs`. None means False, for a
            command that has no such option.

    Raises:
        NotADirectoryError: if `folder` or a parent is a file.
        ValueError: if the file with the record's name is not a record of attzoo.
        OSError: if the record is not a regular file.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path], overwrite: bool | None = False) -> None:
        self.folder = usable_folder(folder)
        self.inputs = {_file_id(path): path for path in inputs if path.exists()}   # a link may be broken
        self.overwrite = overwrite
        self.record = folder / RECORD
        self.digests: dict[str, set[str]] = {}   # by file: the possible digests of a file that attzoo wrote
        self.sources: dict[str, str] = {}        # by file: the path of the image that it was computed from
        self._can_append = False                 # whether the record is complete, so that lines can be added
        self._cleaned: set[Path] = set()         # folders in which stale temporary files were removed
        if self.record.exists():
            self._read()
        self._earlier = frozenset(self.digests)   # the files in the record before this call
        self._added: set[str] = set()             # the files that this call added to the record

    def check(self, paths: Iterable[Path], source: Path | None = None) -> None:
        """Raise FileExistsError unless all files may be written; write nothing.

        Args:
            paths: the files that will be written.
            source: the image that the files are computed from. Results of another image with the same name are not
                replaced, unless `overwrite` is set.
        """
        for path in paths:
            if not path.exists():
                continue
            if not path.is_file():
                kind = "a folder" if path.is_dir() else "something else"
                raise FileExistsError(f"expected a file or nothing at {path}, got {kind}: set another --out")
            if input_path := self.inputs.get(_file_id(path)):
                raise FileExistsError(
                    f"expected an output that is not an input, got {path}, the input {input_path}: set another --out"
                )
            if self.overwrite:
                continue
            fix = "set another --out" + (", or set --overwrite" if self.overwrite is not None else "")
            if not self._is_unchanged(path):
                raise FileExistsError(
                    f"expected to replace only unchanged files that attzoo wrote, got another file at {path}: {fix}"
                )
            recorded_source = self.sources.get(self._name(path))
            if source and recorded_source not in (None, _absolute(source)):
                raise FileExistsError(
                    f"expected to replace only results of {source}, got a result of {recorded_source} at {path}: {fix}"
                )

    def write(self, results: Mapping[Path, bytes], source: Path | None = None, to_remove: Iterable[Path] = ()) -> None:
        """Write the results of one image.

        Earlier results are removed before the first new one is written, so that results of two calls never are in the
        folder together.

        Args:
            results: the content of each file, by path.
            source: the image that the results are computed from.
            to_remove: files to remove if attzoo wrote them and they are unchanged.

        Raises:
            OSError: if a file cannot be written. The message names it.
        """
        digests = {self._name(path): sha256(content).hexdigest() for path, content in results.items()}
        self._add_to_record(digests, None if source is None else _absolute(source))
        for path in (*list(results)[1:], *to_remove):   # the first result is replaced atomically
            if path.is_file() and self._is_unchanged(path) and _file_id(path) not in self.inputs:
                path.unlink()
        for path, content in results.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, content, remove_old=path.parent not in self._cleaned)
            self._cleaned.add(path.parent)

    def finish(self) -> None:
        """Remove files that no longer exist, and outdated digests, from the record. Call it after the last `write`."""
        if self.record.exists():
            with self._record_lock():
                self._clean_record()

    def _clean_record(self) -> None:
        """Do the work of `finish`. The caller has locked the record. Files that other processes added remain in it."""
        self._read()
        missing_names = {name for name in self._earlier | self._added if not (self.folder / name).is_file()}
        names_with_several_digests = {name for name in self._added - missing_names if len(self.digests[name]) > 1}
        if names_with_several_digests or missing_names & self.digests.keys():
            self.digests = {name: digests for name, digests in self.digests.items() if name not in missing_names}
            for name in names_with_several_digests:
                self.digests[name] &= {digest_of(self.folder / name)}
            self._write_record()

    def _read(self) -> None:
        """Add the files in the record to `digests` and `sources`.

        A record that a full disk or a killed process truncated is read up to the last whole line.

        Raises:
            ValueError: if the file is not a record of attzoo.
        """
        with open_regular(self.record) as file:
            header, *lines = os.fsdecode(file.read()).split("\n")
        if header != HEADER if lines else not HEADER.startswith(header):
            fix = "remove this file, or set another --out"
            raise ValueError(
                f"expected a record of the files that attzoo wrote in {self.record}, got another file: {fix}"
            )
        self._can_append = lines[-1:] == [""]
        source = None
        for line in filter(None, lines[:-1]):
            if line.startswith(FROM):
                with suppress(ValueError):
                    source = str(json.loads(line.removeprefix(FROM)))
                continue
            name, digest = _parse_line(line)
            self.digests.setdefault(name, set()).add(digest)
            if source is not None:
                self.sources[name], source = source, None

    @contextmanager
    def _record_lock(self) -> Iterator[None]:
        """Lock the record for the `with` block; wait while another process or thread holds the lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            with locked(self.folder, LOCK) as is_free:
                if is_free:
                    yield
                    return
            sleep(WAIT)

    def _add_to_record(self, digests: Mapping[str, str], source: str | None) -> None:
        """Lock the record, and add the digests of files that will be written, and their source, to it."""
        with self._record_lock():
            if not self._can_append and self.record.exists():   # another process may have created it
                self._read()
            self._add_to_locked_record(digests, source)

    def _add_to_locked_record(self, digests: Mapping[str, str], source: str | None) -> None:
        """Do the work of `_add_to_record`. The caller has locked the record."""
        self._added |= digests.keys()
        new = {
            name: digest
            for name, digest in digests.items()
            if digest not in self.digests.get(name, ()) or self.sources.get(name) != source
        }
        for name, digest in new.items():
            self.digests.setdefault(name, set()).add(digest)
            if source is not None:
                self.sources[name] = source
        if not self._can_append:
            self._write_record()
        elif new:
            self._append(os.fsencode("".join(_record_lines(name, digest, source) for name, digest in new.items())))

    def _write_record(self) -> None:
        """Write `digests` and `sources` to the record, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = ((name, digest) for name, digests in self.digests.items() for digest in sorted(digests))
        lines = (_record_lines(name, digest, self.sources.get(name)) for name, digest in entries)
        write(self.record, os.fsencode("".join((f"{HEADER}\n", *lines))))
        self._can_append = True

    def _append(self, lines: bytes) -> None:
        """Append lines to the record, all or, on an error, none. Raise OSError that names the record."""
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

    def _is_unchanged(self, path: Path) -> bool:
        """Whether attzoo wrote a file and its content has not changed since."""
        return digest_of(path) in self.digests.get(self._name(path), ())

    def _name(self, path: Path) -> str:
        """Return the name of a file in the record: its path relative to the folder."""
        return path.relative_to(self.folder).as_posix()


def _absolute(source: Path) -> str:
    """Return the absolute path of an image, with symbolic links resolved."""
    return str(source.resolve())


def _file_id(path: Path) -> tuple[int, int]:
    """Return the device and inode of a file, which all links to it share."""
    status = path.stat()
    return status.st_dev, status.st_ino
