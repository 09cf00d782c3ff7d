"""The network of the best epoch: saved so that a kill loses nothing, and looked after by a digest of its file."""

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
    """epoch: whose network is in the file. digest: of the file. since: the first epoch that it is the best of."""

    epoch: int
    digest: str
    since: int = 1

    def text(self) -> str:
        """What is in the file, in words."""
        since = "" if self.since == 1 else f" from epoch {self.since} on"
        opens = "either framework opens it: attzoo.load(file, backend=...)"
        return f"the network of epoch {self.epoch}, the best{since}; {opens}"


def digest_if_there(path: Path) -> str | None:
    """The SHA-256 of a file's content; None where there is no file."""
    return digest_of(path) if path.is_file() else None


def prepare(network: Any, out: Path, epoch: int, since: int) -> Best:
    """Write the network of an epoch beside the best one so far, which `put` replaces."""
    waiting = out / f"{PREFIX}{NAME}"
    portable.save(network, waiting)
    return Best(epoch, digest_of(waiting), since)


def put(out: Path) -> None:
    """Let the prepared network take the place of the best one so far."""
    os.replace(out / f"{PREFIX}{NAME}", out / NAME)
