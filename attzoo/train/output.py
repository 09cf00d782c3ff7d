"""The files of a run: its folder, its state, the saved networks and the reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from .. import portable
from ..files import PREFIX, locked, remove_stale, usable_folder, write
from . import best, report, state
from .basis import Basis
from .schedule import best_epoch, stop_text
from .settings import Settings
from .state import Row, State
from .validation import worst

FILES: Final = {
    best.NAME: "the network of the best epoch; either framework opens it: attzoo.load(file, backend=...)",
    "history.csv": "learning rate, losses, accuracy, mean IoU, Dice and seconds of every epoch",
    "cases.csv": "the Dice of every validation image in the best epoch",
    "curves.png": "plots of losses, accuracy, mean IoU and Dice",
    "settings.json": "the settings of the run",
    state.NAME: "the state from which --resume continues",
}


@contextmanager
def locked_folder(out: Path, is_first: bool) -> Iterator[None]:
    """Create the folder and lock it for the `with` block, if this process `is_first`, which is rank 0.

    At the end, folders that it created and that are still empty are removed. Raises ValueError if another run holds the
    lock.
    """
    if not is_first:
        yield
        return
    new_folders = [folder for folder in (usable_folder(out), *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out) as is_free:
            if not is_free:
                fix = "wait until it ends, or choose another --out"
                raise ValueError(f"expected a folder that no other run writes to, got {out} with an active run: {fix}")
            yield
    finally:
        with suppress(OSError):   # the folder is not empty
            for folder in new_folders:
                folder.rmdir()


def open_run(out: Path, settings: Settings, resume: bool, is_first: bool) -> State:
    """Return the state of the run in folder `out` if `resume`, else that of a new run.

    A run that ended in its first epoch has only saved its settings: it is resumed as a new run, and a new run may be in
    its folder.

    Raises ValueError if there is no run to resume, or if a new run would be in a folder with other files. Such files
    are checked only if `is_first`, in the first of several processes. Raises FileNotFoundError if the data of the run
    to resume are missing.
    """
    if resume:
        state.settings_to_resume(out, settings.config())
        run = state.load(out) if (out / state.NAME).exists() else State(settings)
        run.settings = settings   # they may differ in `data`, `epochs` and `patience`
        if settings.data is not None and not Path(settings.data).is_dir():
            fix = "set --data to the folder that holds them now"
            raise FileNotFoundError(f"expected the data of the run in {out} at {settings.data}, got no folder: {fix}")
        return run
    if (
        is_first
        and out.exists()
        and (names := sorted(path.name for path in out.iterdir() if not path.name.startswith(PREFIX)))
    ):
        if state.SETTINGS in names and {*names} <= {*state.FIRST_FILES}:
            state.load_settings(out)   # raises for the file of another program; else the run ended in its first epoch
            return State(settings)
        content = "a run: set --resume, or choose another --out"
        content = content if state.NAME in names else f"{names[0]}: choose another --out"
        raise ValueError(f"expected a new or empty folder, got {out} with {content}")
    return State(settings)


def restore(run: State, out: Path, trainer: Any, classes: int, basis: Basis) -> None:
    """Set the trainer in place to the saved state of a run. For a run without an epoch, set the basis of `run` instead.

    Args:
        run: the state of the run.
        out: its folder, for errors.
        trainer: the trainer.
        classes: the number of classes.
        basis: the basis of this process's run.

    Raises:
        ValueError: the state is damaged, or the run began with another `Basis`: other data, framework or devices.
    """
    if not run.history:
        run.basis, run.contents = dict(basis.conditions), dict(basis.digests)
        return
    basis.check(run, out)
    try:
        if (count := sum(name.startswith("dice_") for name in run.history[0])) != classes:
            raise ValueError(f"expected the Dice of {classes} classes in its history, got {count}")
        trainer.restore(run.arrays)
    except ValueError as err:
        fix = "put back a copy of it, or start a new run in another --out"
        raise ValueError(f"{out / state.NAME} is not the state of this run: {err}; {fix}") from err


def prepare_folder(
    run: State, out: Path, trainer: Any, dtypes: Sequence[str], tensorboard: bool
) -> Callable[[Row], None] | None:
    """Write the settings and the `dtypes` of the images, and repair the files of earlier epochs.

    trainer: has the network to save in place of a lost best one. Returns the function that writes a row as TensorBoard
    events, or None without `tensorboard`.
    """
    remove_stale(out)
    write(out / state.SETTINGS, (json.dumps(run.settings.config() | {state.DTYPES: dtypes}, indent=1) + "\n").encode())
    if run.history:
        _repair_best(run, trainer, out)
        run.save(out)   # with settings that a resumed run may change
        _write_report(run, out)
    return report.tensorboard(out / "tensorboard") if tensorboard else None


def _repair_best(run: State, trainer: Any, out: Path) -> None:
    """If the file of the best network is missing or changed, save the network of the last epoch in its place.

    Then `run.best` describes that network, and the state of the run is saved. Print that the best network is lost,
    unless it is that of the last epoch.
    """
    digest, epoch = best.digest_or_none(out / best.NAME), len(run.history)
    if run.best and digest == run.best.digest:
        return
    if not run.best or run.best.epoch != epoch:   # else the run was killed between saving the state and the network
        got = "missing" if digest is None else "not the file that was saved"
        message = f"the network of epoch {run.best.epoch if run.best else '?'}, the best, is lost"
        print(f"{out / best.NAME} is {got}: {message}; the file now holds epoch {epoch}, the last", file=sys.stderr)
    since = run.best.since if run.best and run.best.epoch == epoch else epoch
    with trainer.averaged() as network:
        run.best = best.save_pending(network, out, epoch, since)
    run.save(out)
    best.replace(out)


def save_epoch(run: State, trainer: Any, out: Path, cases: list[Row]) -> None:
    """Save the state, the networks and the report after an epoch, of which `cases` are the rows of the images.

    The best network is replaced after the state is saved. If the process is killed in between, `_repair_best` replaces
    it on resume.
    """
    row = run.history[-1]
    interval, since = run.settings.checkpoint_every, run.best.since if run.best else 1
    is_best = best_epoch(run.history, since) == row["epoch"]
    with trainer.averaged() as network:
        if interval and row["epoch"] % interval == 0:
            portable.save(network, out / f"epoch-{row['epoch']:03}.safetensors")
        if is_best:
            run.best, run.cases = best.save_pending(network, out, row["epoch"], since), cases
    run.save(out)
    if is_best:
        best.replace(out)
    _write_report(run, out)


def summary(out: Path) -> tuple[list[str], bool]:
    """Return the lines of text about a finished run, and whether all of its files are there and unchanged.

    There is a line for each file, one that names the worst validation images, and one if training stopped early.
    """
    run = state.load(out, arrays=False)
    saved = run.best
    lines, is_complete = [], True
    for name, content in FILES.items():
        digest = best.digest_or_none(out / name)
        is_unchanged = digest is not None and (name != best.NAME or (saved is not None and digest == saved.digest))
        is_complete &= is_unchanged
        content = saved.text() if name == best.NAME and saved else content
        problem = f"{'missing' if digest is None else 'not the file that was saved'}, should be {content}"
        lines.append(f"{out / name}: {content if is_unchanged else problem}")
    return [*lines, *filter(None, (worst(run.cases), stop_text(run.settings, run.history)))], is_complete


def _write_report(run: State, out: Path) -> None:
    """Write history.csv, cases.csv and curves.png to folder `out`."""
    write(out / "history.csv", report.as_csv(run.history))
    write(out / "cases.csv", report.as_csv(run.cases))
    write(out / "curves.png", report.curves(run.history, _title(run.settings)))


def _title(settings: Settings) -> str:
    """Return the title of the plots: network, data and framework."""
    name = settings.variant or "U-Net"
    return f"{name} on {Path(settings.data).name if settings.data else 'phantoms'}, {settings.backend}"
