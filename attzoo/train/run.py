"""The training loop of both frameworks: epochs of training steps and validation, and the files that a run writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import islice
from math import fsum, isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from .. import contract, portable, registry
from ..data import package
from ..files import PREFIX, locked, remove_stale, usable_folder, write
from . import best, overview, report, state
from .basis import Basis, basis_of
from .batches import Batches, Loader, check_guard
from .data import Dataset
from .datasets import datasets
from .progress import Report, progress
from .settings import Settings, learning_rate
from .state import Row, State

CHANNELS: Final = (16, 32, 64)   # default without `channels` and `variant`
FILES: Final = {
    best.NAME: "the network of the best epoch; either framework opens it: attzoo.load(file, backend=...)",
    "history.csv": "learning rate, loss, accuracy, mean IoU, Dice and seconds of every epoch",
    "curves.png": "plots of loss, accuracy, mean IoU and Dice",
    "settings.json": "the settings of the run",
    state.NAME: "the state from which --resume continues",
}


class Diverged(ValueError):
    """The error of `train` if the loss or a weight is nan or infinite."""


def train(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    workers: int = 0,
    tensorboard: bool = False,
    quiet: bool = False,
) -> list[Row]:
    """Train a U-Net, and write the files listed in FILES and checkpoints into the folder `out`.

    Under torchrun, every process calls this function, and rank 0 writes the files.

    Args:
        settings: the network, the data and the optimization.
        out: a new or empty folder, or the folder of the run to resume.
        resume: continue the run in `out` after its last complete epoch. On a CPU the results are bit for bit those of
            a run without interruption. The data may be in another folder, if the content of the files is the same.
        workers: >= 0, processes that load batches in advance.
        tensorboard: also write TensorBoard events.
        quiet: do not print the overview and the progress.

    Returns:
        One row of metrics per epoch.

    Raises:
        ValueError: `out` is not new or empty; or, to resume, it holds no run, a damaged run, or a run with other
            settings, images, masks, framework or number of devices; or another run writes to it; or the images and
            masks do not fit each other or the settings.
        Diverged: the loss or a weight is nan or infinite. The files of the last good epoch stay.
        OSError: a file cannot be read or written.
        ModuleNotFoundError: a package is missing. The message has the install command.
    """
    out, workers = Path(out), contract.integer("workers", workers, 0)
    check_guard(workers)
    if settings.data is not None:
        settings = replace(settings, data=str(Path(settings.data).resolve()))
    contract.triton_first()
    for name in ("torch", "rich", "matplotlib.figure"):   # a missing package must not stop the run after an epoch
        package(name)
    with registry.name_missing_extra("training"):
        backend = import_module(f"{__package__}.{settings.backend}")
    with backend.process_group() as (rank, world_size), _locked_folder(out, is_first=rank == 0):
        run = _open_run(out, settings, resume, is_first=rank == 0)   # errors in settings before reading the data
        training, validation = datasets(settings)
        loader, validation_loader = _loaders(settings, training, validation, workers, rank, world_size)
        steps = _steps_per_epoch(loader, settings.accumulate)
        classes = training.classes or 0
        trainer = backend.Trainer(settings, network(settings, training.channels, classes), classes)
        _restore(run, out, trainer, classes, basis_of(trainer, training, validation))
        dtypes = sorted({*getattr(training, "dtypes", ()), *getattr(validation, "dtypes", ())})
        add_events = _prepare_folder(run, out, trainer, dtypes, tensorboard) if rank == 0 else None
        if rank == 0 and not quiet:
            print(*overview.lines(settings, out, training, validation, trainer), sep="\n", file=sys.stderr)
        with progress(settings, len(run.history), steps, quiet or rank > 0) as report_progress:
            for epoch in range(len(run.history), settings.epochs):
                batches, validation_batches = islice(loader.epoch(epoch), steps), validation_loader.epoch(epoch)
                row = _run_epoch(trainer, settings, epoch, batches, validation_batches, report_progress)
                run.history.append(row)
                run.arrays = trainer.state()
                _check_finite(run, epoch)
                if rank == 0:
                    _save_epoch(run, trainer.network, out)
                    if add_events:
                        add_events(row)
        return run.history


def _loaders(
    settings: Settings, training: Dataset, validation: Dataset, workers: int, rank: int, world_size: int
) -> tuple[Loader, Loader]:
    """Return the loaders of training and validation data for process `rank` of `world_size` processes.

    workers: the number of processes that load batches in advance.
    """
    options: dict[str, Any] = {"seed": settings.seed, "rank": rank, "world_size": world_size}
    # batch norm needs several values
    leaves_single_sample = len(training) > settings.batch and len(training) % settings.batch == 1
    drop_last = world_size > 1 or leaves_single_sample   # every process needs the same number of batches
    batches = Batches(len(training), settings.batch, drop_last=drop_last, **options)
    pin = settings.backend == "torch"
    loader = Loader(training, batches, workers, pin)
    return loader, Loader(validation, Batches(len(validation), settings.batch, shuffle=False, **options), workers, pin)


def _steps_per_epoch(loader: Loader, accumulate: int) -> int:
    """Return the number of batches used in an epoch, a multiple of `accumulate`. Raise ValueError if it is 0."""
    steps = len(loader) // accumulate * accumulate
    if not steps:
        fix = f"{len(loader)} in an epoch: set a smaller --accumulate or --batch"
        raise ValueError(f"expected at least {accumulate} batches to accumulate, got {fix}")
    return steps


def network(settings: Settings, channels: int, classes: int) -> Callable[..., Any]:
    """Return a function that creates the network of the settings. It takes `backend`, and may take `dtype`.

    Args:
        settings: the settings of the run.
        channels: the number of channels of the images.
        classes: the number of classes.
    """
    arguments = dict(settings.network)
    if settings.channels or not settings.variant:
        arguments["channels"] = settings.channels or CHANNELS
    arguments |= {"spatial_dims": settings.dims, "head": "linear", "variant": settings.variant}
    return partial(registry.create, "unet", channels, settings.outputs(classes), **arguments)


def _run_epoch(
    trainer: Any,
    settings: Settings,
    epoch: int,
    batches: Iterable[Any],
    validation_batches: Iterable[Any],
    report_progress: Report,
) -> Row:
    """Train for one epoch, counted from 0, then validate, and return the row of metrics.

    Args:
        trainer: the trainer, changed in place.
        settings: the settings of the run.
        epoch: the epoch.
        batches: the batches to train on, pairs of images and masks.
        validation_batches: the batches to validate on.
        report_progress: the function that `progress` yields.

    Raises:
        Diverged: if a loss is nan or infinite.
    """
    start_time, rate, losses = perf_counter(), learning_rate(settings, epoch), []
    trainer.begin_epoch(rate, int(np.random.SeedSequence((settings.seed, epoch)).generate_state(1)[0]))
    for images, masks in batches:
        losses.append(trainer.step(images, masks))
        if not isfinite(losses[-1]):
            raise Diverged(_divergence_message(f"a finite loss, got {losses[-1]} in step {len(losses)} of", epoch))
        report_progress(epoch, losses[-1], None)
    training_counts = trainer.pop_confusion()
    for images, masks in validation_batches:
        trainer.evaluate(images, masks)
    loss, seconds = fsum(losses) / len(losses), perf_counter() - start_time
    row = report.row(epoch + 1, rate, loss, training_counts, trainer.pop_confusion(), seconds)
    report_progress(epoch, None, row)
    return row


def _check_finite(run: State, epoch: int) -> None:
    """Raise Diverged if a weight of the network in `run` is nan or infinite after an epoch."""
    weights = (array for name, array in run.arrays.items() if name.startswith("network."))
    if not all(np.isfinite(array).all() for array in weights):
        raise Diverged(_divergence_message("finite weights, got weights that are not finite after", epoch))


def _divergence_message(problem: str, epoch: int) -> str:
    """Return the message of Diverged: "expected {problem} epoch {epoch + 1}" and what to try."""
    saved_text = f"; the state after epoch {epoch} is saved" if epoch else ""
    return f"expected {problem} epoch {epoch + 1}: try a lower --rate{saved_text}"


# ---- files -----------------------------------------------------------------------------------------


@contextmanager
def _locked_folder(out: Path, is_first: bool) -> Iterator[None]:
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


def _open_run(out: Path, settings: Settings, resume: bool, is_first: bool) -> State:
    """Return the state of the run in folder `out` if `resume`, else that of a new run.

    Raises ValueError if there is no run to resume, or if a new run would be in a folder with files. Such files are
    checked only if `is_first`, in the first of several processes. Raises FileNotFoundError if the data of the run to
    resume are missing.
    """
    if resume:
        state.settings_to_resume(out, settings.config())
        run = state.load(out) if (out / state.NAME).exists() else State(settings)
        run.settings = settings   # the folder of the data may differ
        if settings.data is not None and not Path(settings.data).is_dir():
            fix = "set --data to the folder that holds them now"
            raise FileNotFoundError(f"expected the data of the run in {out} at {settings.data}, got no folder: {fix}")
        return run
    if (
        is_first
        and out.exists()
        and (names := sorted(path.name for path in out.iterdir() if not path.name.startswith(PREFIX)))
    ):
        if names == [state.SETTINGS]:
            state.load_settings(out)   # raises for the file of another program; else the run ended in its first epoch
            return State(settings)
        content = "a run: set --resume, or choose another --out"
        content = content if state.NAME in names else f"{names[0]}: choose another --out"
        raise ValueError(f"expected a new or empty folder, got {out} with {content}")
    return State(settings)


def _restore(run: State, out: Path, trainer: Any, classes: int, basis: Basis) -> None:
    """Set the trainer in place to the saved state of a run; for a new run, set the basis of the run instead.

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


def _prepare_folder(
    run: State, out: Path, trainer: Any, dtypes: Sequence[str], tensorboard: bool
) -> Callable[[Row], None] | None:
    """Write the settings and the `dtypes` of the images, and repair the files of earlier epochs.

    trainer: has the network to save in place of a lost best one. Returns the function that writes a row as TensorBoard
    events, or None without `tensorboard`.
    """
    remove_stale(out)
    write(out / state.SETTINGS, (json.dumps(run.settings.config() | {state.DTYPES: dtypes}, indent=1) + "\n").encode())
    if run.history:
        _repair_best(run, trainer.network, out)
        _write_report(run, out)
    return report.tensorboard(out / "tensorboard") if tensorboard else None


def _repair_best(run: State, network: Any, out: Path) -> None:
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
    run.best = best.save_pending(network, out, epoch, since)
    run.save(out)
    best.replace(out)


def _save_epoch(run: State, network: Any, out: Path) -> None:
    """Save the state, the networks and the report after an epoch.

    The best network is replaced after the state is saved. If the process is killed in between, `_repair_best` replaces
    it on resume.
    """
    row = run.history[-1]
    interval, since = run.settings.checkpoint_every, run.best.since if run.best else 1
    if interval and row["epoch"] % interval == 0:
        portable.save(network, out / f"epoch-{row['epoch']:03}.safetensors")
    is_best = all(row["mean_iou"] > earlier_row["mean_iou"] for earlier_row in run.history[since - 1 : -1])
    if is_best:
        run.best = best.save_pending(network, out, row["epoch"], since)
    run.save(out)
    if is_best:
        best.replace(out)
    _write_report(run, out)


def summary(out: Path) -> tuple[list[str], bool]:
    """Return a line of text for each file of a finished run, and whether all files are there and unchanged."""
    saved = state.load(out, arrays=False).best
    lines, is_complete = [], True
    for name, content in FILES.items():
        digest = best.digest_or_none(out / name)
        is_unchanged = digest is not None and (name != best.NAME or (saved is not None and digest == saved.digest))
        is_complete &= is_unchanged
        content = saved.text() if name == best.NAME and saved else content
        problem = f"{'missing' if digest is None else 'not the file that was saved'}, should be {content}"
        lines.append(f"{out / name}: {content if is_unchanged else problem}")
    return lines, is_complete


def _write_report(run: State, out: Path) -> None:
    """Write history.csv and curves.png to folder `out`."""
    write(out / "history.csv", report.as_csv(run.history))
    write(out / "curves.png", report.curves(run.history, _title(run.settings)))


def _title(settings: Settings) -> str:
    """Return the title of the plots: network, data and framework."""
    name = settings.variant or "U-Net"
    return f"{name} on {Path(settings.data).name if settings.data else 'phantoms'}, {settings.backend}"
