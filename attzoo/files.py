"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PREFIX: Final = ".attzoo-"   # of files that are not whole yet


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new file beside `path`, of the same ending, to write to; it takes the place of `path` when the body is done.

    Where the body fails, or is interrupted, what was there stays and the new file goes. Permissions stay; a symbolic
    link is replaced, not followed. Raises OSError where `path` cannot be written or is no file.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    if path.exists() and not path.is_file():   # a folder, or a device that a file would take the place of
        raise OSError(f"expected a file or nothing at {path}, got something else")
    temporary = path.with_name(f"{PREFIX}{os.urandom(8).hex()}-{path.name[-20:]}")   # writers look at the ending
    try:
        temporary.touch(exist_ok=False)
        if path.exists():   # before anything is in it
            temporary.chmod(path.stat().st_mode & 0o777)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write(path: Path, data: bytes) -> None:
    """Make `data` the content of the file at `path`; raises as `whole`."""
    with whole(path) as temporary:
        temporary.write_bytes(data)
