"""Files that appear whole or not at all, and regular files to read."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final

PREFIX: Final = ".attzoo-"   # of files that are not whole yet
LOCK: Final = f"{PREFIX}lock"
RANDOM: Final = 8    # bytes in the name of a temporary file
KEPT: Final = 20     # letters of its target's name, which has the ending that writers look at
TEMPORARY: Final = re.compile(rf"{re.escape(PREFIX)}[0-9a-f]{{{2 * RANDOM}}}-.{{1,{KEPT}}}", re.DOTALL)


@contextmanager
def whole(path: Path, tidy: bool = True) -> Iterator[Path]:
    """A new file beside `path`, of the same ending, to write to; it takes the place of `path` when the body is done.

    Where the body fails, or is interrupted, what was there stays and the new file goes. tidy: remove what killed
    processes left in the folder; who writes many files does so once, with `remove_stale`. Permissions stay; a symbolic
    link is replaced, not followed. Raises OSError, which names `path`, where it cannot be written or is no file.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    if path.exists() and not path.is_file():   # a folder, or a device that a file would take the place of
        raise OSError(f"expected a file or nothing at {path}, got something else")
    if path.exists() and not path.is_symlink() and not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
        raise PermissionError(f"expected a file that may be written at {path}, got a read-only one: make it writable")
    if tidy:
        remove_stale(path.parent)
    temporary = None
    try:
        temporary, lock = _locked(path)
        with lock:
            if path.exists():   # before anything is in it
                temporary.chmod(path.stat().st_mode & 0o777)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as err:
        if temporary:
            with suppress(OSError):
                temporary.unlink()
        if isinstance(err, OSError) and err.errno and err.filename in (None, str(temporary)):   # of a full disk, say
            raise OSError(err.errno, err.strerror, str(path)) from err
        raise


def write(path: Path, data: bytes, tidy: bool = True) -> None:
    """Make `data` the content of the file at `path`; tidies and raises as `whole`."""
    with whole(path, tidy) as temporary:
        temporary.write_bytes(data)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files of processes that were killed: those that nobody has locked."""
    names: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if TEMPORARY.fullmatch(entry.name)]
    for name in names:
        with suppress(OSError), open(folder / name, "rb", opener=_no_link) as file:
            if _lock(file, wait=False):
                (folder / name).unlink()


def open_regular(path: Path) -> BinaryIO:
    """A file to read. Raises OSError where there is none, or something that is no regular file: a pipe would block."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        file = open(path, "rb", opener=_without_waiting)   # noqa: SIM115, the caller closes it
        if stat.S_ISREG(mode := os.fstat(file.fileno()).st_mode):   # nobody has put something else there since
            return file
        file.close()
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise _irregular(path, mode)


def usable_folder(path: Path) -> Path:
    """`path`, which is a folder or can be made one. Raises NotADirectoryError where a file is in the way."""
    for each in (path, *path.parents):
        if each.exists() and not each.is_dir():
            raise NotADirectoryError(f"out must be a folder, got a file: {each}")
    return path


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether a folder is this process's alone inside; another that asks meanwhile, or another thread, gets False.

    A lock in a file, which is removed at the end. That of a process that was killed is free again. Raises OSError where
    something else is in the place of that file.
    """
    path = folder / LOCK
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(mode := path.lstat().st_mode):   # a pipe would be opened for ever
            raise _irregular(path, mode)
    while True:
        with open(path, "ab", opener=_no_link) as file:
            is_free = _lock(file, wait=False) is not False
            if is_free and not _is_at(path, file):   # another process has removed it since
                continue
            try:
                yield is_free
            finally:
                if is_free:
                    with suppress(OSError):
                        path.unlink()
            return


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits. Raises OSError where there is no file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def in_memory(ending: str) -> Iterator[Path]:
    """A path to write to, for writers that take no file: of a file in memory on Linux, else of a temporary one."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"file{ending}"
        if not hasattr(os, "memfd_create"):
            yield path
            return
        memory = os.memfd_create("attzoo")
        try:
            path.symlink_to(f"/proc/self/fd/{memory}")
            yield path
        finally:
            os.close(memory)


def _locked(path: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file beside `path`, and that file open and locked, so that nobody takes it for stale."""
    while True:
        name = f"{PREFIX}{os.urandom(RANDOM).hex()}-{path.name[-KEPT:]}"
        temporary = path.with_name(name)
        file = temporary.open("xb")
        try:
            _lock(file, wait=True)
            if temporary.exists():   # nobody removed it between its making and its lock
                return temporary, file
        except BaseException:
            file.close()
            with suppress(OSError):
                temporary.unlink()
            raise
        file.close()


def _lock(file: BinaryIO, wait: bool) -> bool | None:
    """Lock an open file until it is closed; False where another process has it, None where files cannot be locked."""
    try:
        fcntl: Any = import_module("fcntl")
    except ImportError:   # Windows, where an open file cannot be removed
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:   # a file system without locks
        return None
    return True


def _irregular(path: Path, mode: int) -> OSError:
    """The error for what is no regular file."""
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}
    return OSError(f"expected a regular file at {path}, got {kinds.get(stat.S_IFMT(mode), 'a device')}")


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
