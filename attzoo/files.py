"""Atomic writing, locks and checked opening of files."""

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

PREFIX: Final = ".attzoo-"   # of the names of temporary files
LOCK: Final = f"{PREFIX}lock"
RANDOM: Final = 8    # number of random bytes in the name of a temporary file
SUFFIX: Final = 20   # number of characters from the end of the target's name, with the extension that writers check
TEMPORARY: Final = re.compile(rf"{re.escape(PREFIX)}[0-9a-f]{{{2 * RANDOM}}}-.{{1,{SUFFIX}}}", re.DOTALL)


@contextmanager
def atomic_write(path: Path, remove_old: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder with the same extension, and move it to `path` at the end.

    If the `with` block raises, the temporary file is removed and an old file at `path` is unchanged. The file at `path`
    keeps its permissions. A symbolic link is replaced, not followed.

    Args:
        path: the file to write.
        remove_old: whether to call `remove_stale` for the folder first. For many files, call it once and pass False.

    Raises:
        OSError: `path` cannot be written, is read-only, or is not a file. The error names `path`.

    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    if path.exists() and not path.is_file():
        raise OSError(f"expected a file or no file at {path}, got {_kind(path.stat().st_mode)}: choose another path")
    if path.exists() and not path.is_symlink() and not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
        raise PermissionError(f"expected a writable file at {path}, got a read-only file: make it writable")
    if remove_old:
        remove_stale(path.parent)
    temporary = None
    try:
        temporary, lock = _locked_temporary(path)
        with lock:
            if path.exists():   # set permissions while the file is still empty
                temporary.chmod(path.stat().st_mode & 0o777)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as err:
        if temporary:
            with suppress(OSError):
                temporary.unlink()
        if isinstance(err, OSError) and err.errno and _is_temporary(err.filename):   # such as a full disk
            raise OSError(err.errno, err.strerror, str(path)) from err
        raise


def write(path: Path, data: bytes, remove_old: bool = True) -> None:
    """Write `data` to `path` atomically. `remove_old` and the errors are as in `atomic_write`."""
    with atomic_write(path, remove_old) as temporary:
        temporary.write_bytes(data)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files of `atomic_write` whose process was killed, which no process has locked.

    A folder or file that cannot be read or removed is skipped.
    """
    names: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if TEMPORARY.fullmatch(entry.name)]
    for name in names:
        with suppress(OSError), open(folder / name, "rb", opener=_open_no_follow) as file:
            if _lock(file, wait=False):
                (folder / name).unlink()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading in binary mode, and return the open file.

    Raise OSError if there is no such file, or if `path` is a folder, a pipe (which would block) or a device.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        file = open(path, "rb", opener=_open_nonblocking)   # noqa: SIM115, the caller closes it
        if stat.S_ISREG(mode := os.fstat(file.fileno()).st_mode):   # not replaced in between
            return file
        file.close()
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder", str(path))
    raise _not_regular(path, mode)


def usable_folder(path: Path) -> Path:
    """Return `path` if it is or can become a folder. Raise NotADirectoryError if it or a parent is a file.

    A link to a missing folder raises too. No folder is created. The message names `path` as `out`, the option that
    callers take it from.
    """
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"out must be a folder, got a file: {folder}; choose another out")
        if folder.is_symlink() and not folder.exists():
            got = f"a link to {folder.readlink()}, which does not exist: {folder}; create it, or choose another out"
            raise NotADirectoryError(f"out must be a folder, got {got}")
    return path


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[bool]:
    """Lock a folder for the `with` block by the file `name` in it, and yield whether this succeeded.

    Yield False if another process or thread holds the lock. The lock is a file, which is removed at the end. If a
    process is killed, its lock is released. Raise OSError if the path of that file is not a regular file, or, naming
    the folder, if the file cannot be created.
    """
    path = folder / name
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(mode := path.lstat().st_mode):   # opening a pipe would block
            raise _not_regular(path, mode)
    while True:
        with _open_lock(path) as file:
            is_free = _lock(file, wait=False) is not False
            if is_free and not _is_at(path, file):   # another process has removed it in between
                continue
            try:
                yield is_free
            finally:
                if is_free:
                    with suppress(OSError):
                        path.unlink()
            return


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits. Raise OSError if there is no file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def in_memory(ending: str) -> Iterator[Path]:
    """Yield the path of an empty file for writers that need a path. The file is removed at the end.

    On Linux the file is in memory, elsewhere in a temporary folder. `ending` is its extension, with the dot.
    """
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


def _open_lock(path: Path) -> BinaryIO:
    """Open a lock file, which is created if needed. Raise OSError that names the folder if this fails."""
    try:
        return open(path, "ab", opener=_open_no_follow)
    except OSError as err:
        raise OSError(err.errno, err.strerror, str(path.parent)) from err


def _is_temporary(name: str | None) -> bool:
    """Whether `name`, the file name of an error, is a temporary file of `atomic_write`; True for None."""
    return name is None or TEMPORARY.fullmatch(Path(name).name) is not None


def _locked_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """Create a temporary file in the folder of `path`. Return its path and the open file.

    The file is locked, so that `remove_stale` in another process does not remove it.
    """
    while True:
        name = f"{PREFIX}{os.urandom(RANDOM).hex()}-{path.name[-SUFFIX:]}"
        temporary = path.with_name(name)
        file = temporary.open("xb")
        try:
            _lock(file, wait=True)
            if temporary.exists():   # not removed between its creation and its lock
                return temporary, file
        except BaseException:
            file.close()
            with suppress(OSError):
                temporary.unlink()
            raise
        file.close()


def _lock(file: BinaryIO, wait: bool) -> bool | None:
    """Lock an open file until it is closed. With `wait`, wait for another process that has locked it.

    Return True if it is locked, False if another process has locked it, None if the file system has no locks. On
    Windows, return True without a lock: there, an open file cannot be removed, which the lock is for.
    """
    try:
        fcntl: Any = import_module("fcntl")
    except ImportError:   # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:   # a file system without locks
        return None
    return True


def _not_regular(path: Path, mode: int) -> OSError:
    """Return the error for a path that is not a regular file. `mode` is the file's st_mode."""
    return OSError(f"expected a regular file at {path}, got {_kind(mode)}")


def _kind(mode: int) -> str:
    """Return what is at the path of a file that is not regular, such as "a folder", for an error. mode: its st_mode."""
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether the open file is still the one at `path`. False if there is no file at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _open_no_follow(path: str, flags: int) -> int:
    """Open a file without following a symbolic link and without blocking. An `opener`: returns the descriptor."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a file without blocking, and return its descriptor. An `opener` of `open`."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
