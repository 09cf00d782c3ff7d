"""The state of a run after an epoch, in one safetensors file: arrays, and JSON metadata. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from ..archive import KEY, pack, verify
from ..contract import Array, short_repr, shorten
from ..files import PREFIX, open_regular, write
from .best import Best
from .settings import Settings

NAME: Final = "resume.safetensors"
SETTINGS: Final = "settings.json"
DTYPES: Final = "dtypes"   # key in SETTINGS besides the settings: the dtypes of the images
FIRST_FILES: Final = (SETTINGS, "tensorboard")   # files of a run before its first epoch ends
FORMAT: Final = 4
COLUMNS: Final = (   # before Dice
    "epoch", "rate", "loss", "validation_loss", "train_accuracy", "validation_accuracy", "mean_iou"
)   # fmt: skip
KEYS: Final = ("format", "settings", "history", "basis", "contents", "best", "cases")   # of the metadata
Row = dict[str, Any]   # metrics of an epoch, by column


@dataclass
class State:
    """The state of a run.

    Attributes:
        settings: the settings of the run.
        history: the rows of all complete epochs.
        arrays: the arrays of the trainer after the last epoch.
        basis: the framework, devices and images that the run began with, as text by name (`Basis.conditions`).
        contents: the digests of images and masks, by "folder/file".
        best: the network of the best epoch; None before the first epoch ends.
        cases: the rows of the validation images in the best epoch, see `Validation.cases`.
    """

    settings: Settings
    history: list[Row] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    basis: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    best: Best | None = None
    cases: list[Row] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the state to its file in the folder, atomically: an error leaves the earlier file."""
        metadata = {"format": FORMAT, "settings": self.settings.config(), "history": self.history}
        metadata |= {"basis": self.basis, "contents": self.contents, "best": self.best and asdict(self.best)}
        metadata |= {"cases": self.cases}
        write(folder / NAME, pack(self.arrays, metadata))


def load(folder: Path, arrays: bool = True) -> State:
    """Load the state in the folder of a run, with its arrays or without.

    Raises:
        ValueError: `State.save` did not write the file, or the file is damaged.
        OSError: there is no file.
    """
    path = folder / NAME
    open_regular(path).close()   # errors of safe_open do not name the file, and it blocks on pipes
    try:
        with safe_open(path, "numpy") as file:
            metadata = json.loads((file.metadata() or {}).get(KEY, "{}"))
            names = file.keys() if arrays else ()
            saved_arrays = {name: file.get_tensor(name) for name in names}
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {_format_text(metadata)}")
        if arrays:
            verify(saved_arrays, metadata, KEYS)
        settings = Settings(**metadata["settings"])
        rows = _check_history(metadata["history"], settings.epochs)
        best = _best(metadata["best"], len(rows))
        texts = dict(metadata["basis"]), dict(metadata["contents"])
        return State(settings, rows, saved_arrays, *texts, best, list(metadata["cases"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, SafetensorError) as err:
        fix = "put back a copy of it, or start a new run in another --out"
        raise ValueError(f"{path} is not the state of a run: {shorten(str(err))}; {fix}") from err


def _format_text(metadata: Any) -> str:
    """Return the end of an error that metadata have another format than FORMAT.

    For an earlier format, it is the number and what to do; for others, the beginning of the metadata.
    """
    if isinstance(metadata, dict) and isinstance(metadata.get("format"), int) and metadata["format"] < FORMAT:
        reason = "of an earlier version, which saved less: start a new run in another --out"
        return f"{metadata['format']}, {reason}"
    return str(metadata)[:100]


def _best(metadata: Any, epochs: int) -> Best | None:
    """Return the `Best` of the metadata, or None for None. Raises ValueError if its epoch is not in 1 to `epochs`."""
    best = None if metadata is None else Best(**metadata)
    if best and not (type(best.epoch) is type(best.since) is int and 1 <= best.since <= best.epoch <= epochs):
        raise ValueError(f"expected a best epoch from 1 to {epochs}, got {str(metadata)[:100]}")
    return best


def _check_history(history: Any, epochs: int) -> list[Row]:
    """Return `history`. Raises ValueError if it is not a list of 1 to `epochs` rows of numbers with equal columns."""
    if not isinstance(history, list) or not 1 <= len(history) <= epochs:
        raise ValueError(f"expected a history of 1 to {epochs} epochs, got {str(history)[:100]}")
    for number, row in enumerate(history, 1):
        if not isinstance(row, dict) or len(row) != len(history[0]):
            raise ValueError(f"expected rows with equal numbers of columns, got {str(row)[:100]}")
        dice = [f"dice_{k}" for k in range(len(row) - len(COLUMNS) - 1)]
        if list(row) != [*COLUMNS, *dice, "seconds"] or row["epoch"] != number:
            raise ValueError(f"expected epoch {number} with columns {', '.join(COLUMNS)}, ..., got {str(row)[:100]}")
        for name, value in row.items():
            is_number = type(value) in (int, float) and isfinite(value)
            if not (is_number or (value is None and name in dice)):
                raise ValueError(f"expected a number as {name} of epoch {number}, got {str(value)[:100]}")
    return history


def check_arrays(arrays: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Raise ValueError unless the arrays have the names, shapes and dtypes of the expected ones."""
    if names := sorted(arrays.keys() ^ expected.keys()):
        article, got = ("an", "none") if names[0] in expected else ("no", "one")
        raise ValueError(f"expected {article} array {names[0]}, got {got}")
    for name, array in expected.items():
        dtype_and_shape, got = (f"{each_array.dtype} {each_array.shape}" for each_array in (array, arrays[name]))
        if dtype_and_shape != got:
            raise ValueError(f"expected {name} to be {dtype_and_shape}, got {got}")


def load_settings(folder: Path) -> Settings:
    """Return the settings of the run in a folder. Raises ValueError if there is no run, or a file is damaged."""
    if (folder / NAME).exists():
        return load(folder, arrays=False).settings
    path = folder / SETTINGS
    if not path.exists():
        fix = "set --out to its folder, or leave out --resume"
        raise ValueError(f"expected a run to resume in {folder}, got none: {fix}")
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(PREFIX))
    if later_files := [name for name in names if name not in FIRST_FILES]:
        fix = f"put {NAME} back, or start a new run in another --out"
        expected = f"{NAME} beside {later_files[0]} in {folder}"
        raise ValueError(f"expected {expected}, got none: the run cannot continue; {fix}")
    try:
        with open_regular(path) as file:
            values = json.loads(file.read())
        if not isinstance(values, dict):
            raise TypeError(f"expected settings as a JSON object, got {short_repr(values)}")
        values.pop(DTYPES, None)
        if missing := [
            field.name for field in fields(Settings) if field.name not in values
        ]:   # the file of another program
            raise ValueError(f"expected {', '.join(missing)} too, got {', '.join(values) or 'nothing'}")
        return Settings(**values)
    except (ValueError, TypeError, RecursionError) as err:
        fix = "choose another --out"
        raise ValueError(f"{path} does not hold the settings of a run: {shorten(str(err))}; {fix}") from err


def settings_to_resume(folder: Path, options: Mapping[str, Any], network: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of the run in a folder, with `data`, `epochs` and `patience` replaced by the given ones.

    The rate of each further epoch is that of a run with the new number of epochs from its beginning.

    Args:
        folder: the folder of the run.
        options: some or all settings, as in `Settings.config`. They must equal those of the run, except for `data`,
            because the digests of the data are compared later, `epochs`, which may be larger, and `patience`.
        network: arguments of the network to compare one by one, if not all of them are given.

    Raises:
        ValueError: settings differ, which the message lists, or there is no run or a damaged one in `folder`.
    """
    settings = load_settings(folder)
    if settings.data is not None and options.get("data") is not None:
        settings = replace(settings, data=options["data"])
    if options.get("epochs", 0) > settings.epochs:
        settings = replace(settings, epochs=options["epochs"])
    if "patience" in options:
        settings = replace(settings, patience=options["patience"])
    config = settings.config()
    changed = {name: value for name, value in options.items() if value != config[name]}
    lines = [f"{name} {short_repr(config[name])}, got {short_repr(value)}" for name, value in changed.items()]
    for name, value in (network or {}).items():
        if name not in settings.network or settings.network[name] != value:
            expected = short_repr(settings.network[name]) if name in settings.network else "at its default"
            lines.append(f"{name} {expected}, got {short_repr(value)}")
    if lines:
        fix = "leave these out, or start a new run in another --out"
        raise ValueError(f"expected the settings of the run in {folder}: {'; '.join(lines)}: {fix}")
    return settings
