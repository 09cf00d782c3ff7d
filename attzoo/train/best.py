"""The file of the best network, replaced in one step and checked by its digest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import portable
from ..files import PREFIX, digest_of

NAME: Final = "best.safetensors"


@dataclass(frozen=True)
class Best:
    """The saved best network.

    Attributes:
        epoch: the epoch of the network, counted from 1.
        digest: the SHA-256 of the file.
        since: the first epoch that was compared, counted from 1. It is above 1 if the file was lost and saved again.
    """

    epoch: int
    digest: str
    since: int = 1

    def text(self) -> str:
        """Return a text that says which network the file holds and how to open it."""
        since_text = "" if self.since == 1 else f" from epoch {self.since} on"
        usage = "either framework opens it: attzoo.load(file, backend=...)"
        return f"the network of epoch {self.epoch}, the best{since_text}; {usage}"


def digest_or_none(path: Path) -> str | None:
    """Return the SHA-256 of a file's content, or None if there is no file."""
    return digest_of(path) if path.is_file() else None


def save_pending(network: Any, out: Path, epoch: int, since: int) -> Best:
    """Save a network under a temporary name in folder `out`, and return its description. `replace` renames the file.

    `epoch` and `since` are those of `Best`.
    """
    path = out / f"{PREFIX}{NAME}"
    portable.save(network, path)
    return Best(epoch, digest_of(path), since)


def replace(out: Path) -> None:
    """Replace the file of the best network in folder `out` by the one that `save_pending` wrote."""
    os.replace(out / f"{PREFIX}{NAME}", out / NAME)
