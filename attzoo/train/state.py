"""A run as it was at the end of an epoch, in one file: arrays, and as JSON beside them what led there. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from ..archive import KEY, pack, verify
from ..contract import Array, brief, shown
from ..files import PREFIX, open_regular, write
from .best import Best
from .settings import Settings

NAME: Final = "resume.safetensors"
SETTINGS: Final = "settings.json"
DTYPES: Final = "dtypes"   # in that file beside the settings: those of the images
BEFORE: Final = (SETTINGS, "tensorboard")   # what a run has before its first epoch ends
FORMAT: Final = 3
COLUMNS: Final = ("epoch", "rate", "loss", "train_accuracy", "validation_accuracy", "mean_iou")   # before every Dice
Row = dict[str, Any]   # what an epoch gave, by column


@dataclass
class State:
    """settings, the rows of all epochs so far, and the trainer's arrays after the last.

    basis: what else the run follows from, in words, by name. contents: digests of images and masks, by folder and name.
    best: the network of the best epoch, None before there is one.
    """

    settings: Settings
    history: list[Row] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    basis: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    best: Best | None = None

    def save(self, folder: Path) -> None:
        """Put the state in place of the folder's last one, whole or not at all."""
        about = {"format": FORMAT, "settings": self.settings.config(), "history": self.history}
        about |= {"basis": self.basis, "contents": self.contents, "best": self.best and asdict(self.best)}
        write(folder / NAME, pack(self.arrays, about))


def load(folder: Path, arrays: bool = True) -> State:
    """The state in a run's folder, with its arrays or without.

    Raises ValueError for a file that `State.save` did not write, OSError for none.
    """
    path = folder / NAME
    open_regular(path).close()   # safe_open's own error does not say which file, and it waits for pipes
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            names = file.keys() if arrays else ()
            found = {name: file.get_tensor(name) for name in names}
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {_format(about)}")
        if arrays:
            verify(found, about, ("format", "settings", "history", "basis", "contents", "best"))
        settings = Settings(**about["settings"])
        rows = _rows(about["history"], settings.epochs)
        return State(settings, rows, found, dict(about["basis"]), dict(about["contents"]), _best(about["best"], rows))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, SafetensorError) as err:
        fix = "put back a copy of it, or train anew into another --out"
        raise ValueError(f"{path} is not the state of a run: {brief(str(err))}; {fix}") from err


def _format(about: Any) -> str:
    if isinstance(about, dict) and isinstance(about.get("format"), int) and about["format"] < FORMAT:
        why = "of an earlier version, which did not note what is in images and masks: train anew into another --out"
        return f"{about['format']}, {why}"
    return str(about)[:100]


def _best(about: Any, rows: list[Row]) -> Best | None:
    """The best epoch's network, which is of an epoch in the history."""
    best = None if about is None else Best(**about)
    if best and not (type(best.epoch) is type(best.since) is int and 1 <= best.since <= best.epoch <= len(rows)):
        raise ValueError(f"expected a best epoch of {len(rows)}, got {str(about)[:100]}")
    return best


def _rows(history: Any, epochs: int) -> list[Row]:
    """A history that is one: a row for each epoch from the first, of numbers, all of the same columns."""
    if not isinstance(history, list) or not 1 <= len(history) <= epochs:
        raise ValueError(f"expected a history of 1 to {epochs} epochs, got {str(history)[:100]}")
    for number, row in enumerate(history, 1):
        if not isinstance(row, dict) or len(row) != len(history[0]):
            raise ValueError(f"expected rows of one length, got {str(row)[:100]}")
        dice = [f"dice_{k}" for k in range(len(row) - len(COLUMNS) - 1)]
        if list(row) != [*COLUMNS, *dice, "seconds"] or row["epoch"] != number:
            raise ValueError(f"expected epoch {number} with {', '.join(COLUMNS)}, ..., got {str(row)[:100]}")
        for name, value in row.items():
            known = type(value) in (int, float) and isfinite(value)
            if not (known or (value is None and name in dice)):
                raise ValueError(f"expected a number as {name} of epoch {number}, got {str(value)[:100]}")
    return history


def fitting(arrays: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Raise ValueError unless the arrays have the names, shapes and dtypes of the wanted ones."""
    if apart := sorted(arrays.keys() ^ wanted.keys()):
        got = "got none" if apart[0] in wanted else "got it"
        raise ValueError(f"expected {'an' if apart[0] in wanted else 'no'} array {apart[0]}, {got}")
    for name, array in wanted.items():
        kinds = [f"{each.dtype} {each.shape}" for each in (array, arrays[name])]
        if kinds[0] != kinds[1]:
            raise ValueError(f"expected {name} to be {kinds[0]}, got {kinds[1]}")


def stored(folder: Path) -> Settings:
    """The settings of the run in a folder. Raises ValueError where there is none, or what is there is broken."""
    if (folder / NAME).exists():
        return load(folder, arrays=False).settings
    path = folder / SETTINGS
    if not path.exists():
        raise ValueError(f"expected a run to resume in {folder}, got none")
    if left := sorted(p.name for p in folder.iterdir() if not p.name.startswith(PREFIX) and p.name not in BEFORE):
        fix = f"put {NAME} back, or train anew into another folder"
        raise ValueError(f"expected {NAME} beside {left[0]} in {folder}, got none: the run can't go on; {fix}")
    try:
        with open_regular(path) as file:
            found = json.loads(file.read())
        if not isinstance(found, dict):
            raise TypeError(f"expected names and values, got {shown(found)}")
        found.pop(DTYPES, None)
        if missing := [each.name for each in fields(Settings) if each.name not in found]:   # another program's
            raise ValueError(f"expected {', '.join(missing)} too, got {', '.join(found) or 'nothing'}")
        return Settings(**found)
    except (ValueError, TypeError, RecursionError) as err:
        fix = "choose another folder"
        raise ValueError(f"{path} does not hold the settings of a run: {brief(str(err))}; {fix}") from err


def agreed(folder: Path, given: Mapping[str, Any], network: Mapping[str, Any] | None = None) -> Settings:
    """The settings of the run in a folder, if the given ones, as in `Settings.config`, are among them.

    network: those arguments of the network that are given, where `given` does not have them all. Another folder of data
    takes the place of the run's, as the digests of its files are compared later.
    Raises ValueError that says which are not, and as `stored`.
    """
    found = stored(folder)
    if found.data is not None and given.get("data") is not None:
        found = replace(found, data=given["data"])
    was = found.config()
    told = [f"{name} {shown(was[name])}, got {shown(value)}" for name, value in given.items() if value != was[name]]
    for name, value in (network or {}).items():
        if name not in found.network or found.network[name] != value:
            kept = shown(found.network[name]) if name in found.network else "as it is unless given"
            told.append(f"{name} {kept}, got {shown(value)}")
    if told:
        fix = "leave these out, or train anew into another --out"
        raise ValueError(f"expected the settings of the run in {folder}: {'; '.join(told)}: {fix}")
    return found
