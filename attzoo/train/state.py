"""A run as it was at the end of an epoch, in one file: arrays, and as JSON beside them what led there. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from ..contract import Array
from ..files import write
from .settings import Settings

NAME: Final = "resume.safetensors"
SETTINGS: Final = "settings.json"
FORMAT: Final = 1
Row = dict[str, Any]   # what an epoch gave, by column


@dataclass
class State:
    """settings, the rows of all epochs so far, and the trainer's arrays after the last."""

    settings: Settings
    history: list[Row] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Put the state in place of the folder's last one, whole or not at all."""
        about = {"format": FORMAT, "settings": self.settings.config(), "history": self.history}
        write(folder / NAME, serialize(self.arrays, metadata={"attzoo": json.dumps(about)}))


def load(folder: Path) -> State:
    """The state in a run's folder. Raises ValueError for a file that `State.save` did not write, OSError for none."""
    path = folder / NAME
    path.stat()   # safe_open's own error does not say which file
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get("attzoo", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}   # noqa: SIM118, it has no iterator
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {str(about)[:100]}")
        return State(Settings(**about["settings"]), list(about["history"]), arrays)
    except (ValueError, TypeError, KeyError, RecursionError, SafetensorError) as err:
        raise ValueError(f"{path} is not the state of a run: {err}") from err


def stored(folder: Path) -> Settings:
    """The settings of the run in a folder. Raises ValueError where there is none, or what is there is broken."""
    if (folder / NAME).exists():
        return load(folder).settings
    path = folder / SETTINGS
    if not path.exists():
        raise ValueError(f"expected a run to resume in {folder}, got none")
    try:
        return Settings(**json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as err:
        raise ValueError(f"{path} does not hold the settings of a run: {err}") from err


def agreed(folder: Path, given: Mapping[str, Any]) -> Settings:
    """The settings of the run in a folder, if the given ones, as in `Settings.config`, are among them.

    Raises ValueError that says which are not, and as `stored`.
    """
    found = stored(folder)
    was = found.config()
    if told := [f"{name} {was[name]!r}, got {value!r}" for name, value in given.items() if value != was[name]]:
        raise ValueError(f"expected the settings of the run in {folder}: {'; '.join(told)}")
    return found
