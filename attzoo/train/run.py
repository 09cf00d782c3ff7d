"""The training loop of both frameworks: epochs of training steps and validation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import islice
from math import fsum, isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from .. import contract, registry
from ..data import package
from ..portable import load_weights
from . import output, overview, report, windows
from .basis import basis_of
from .batches import Loader, check_guard
from .datasets import datasets, loaders
from .progress import Report, progress
from .schedule import learning_rate, should_stop
from .settings import Settings
from .state import Row, State
from .validation import Validation, image_names
from .weighting import class_weights

CHANNELS: Final = (16, 32, 64)   # default without `channels` and `variant`


class Diverged(ValueError):
    """The error of `train` if the loss or a weight is nan or infinite."""


def train(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    workers: int = 0,
    device: str | None = None,
    tensorboard: bool = False,
    quiet: bool = False,
) -> list[Row]:
    """Train a U-Net, and write the files listed in `output.FILES` and checkpoints into the folder `out`.

    Under torchrun, every process calls this function, and rank 0 writes the files.

    Args:
        settings: the network, the data and the optimization.
        out: a new or empty folder, or the folder of the run to resume.
        resume: continue the run in `out` after its last complete epoch. On a CPU the results are bit for bit those of
            a run without interruption. The data may be in another folder, if the content of the files is the same.
        workers: >= 0, processes that load batches in advance.
        device: the device to train on, such as "cpu", "cuda:1" or "mps". None takes a GPU, if there is one; Keras on
            TensorFlow then takes all. Another device may give other bits in a resumed run.
        tensorboard: also write TensorBoard events.
        quiet: do not print the overview and the progress.

    Returns:
        One row of metrics per epoch.

    Raises:
        ValueError: `out` is not new or empty; or, to resume, it holds no run, a damaged run, or a run with other
            settings, images, masks, framework or number of devices; or another run writes to it; or the images and
            masks do not fit each other or the settings; or there is no such device.
        Diverged: the loss or a weight is nan or infinite. The files of the last good epoch stay.
        OSError: a file cannot be read or written.
        ModuleNotFoundError: a package is missing. The message has the install command.
    """
    out, workers = Path(out), contract.integer("workers", workers, 0)
    check_guard(workers)
    data, init = (path and str(Path(path).resolve()) for path in (settings.data, settings.init))
    settings = replace(settings, data=data, init=init)
    contract.triton_first()
    for name in ("torch", "rich", "matplotlib.figure"):   # a missing package must not stop the run after an epoch
        package(name)
    with registry.name_missing_extra("training"):
        backend = import_module(f"{__package__}.{settings.backend}")
    with backend.process_group(device) as (rank, world_size), output.locked_folder(out, is_first=rank == 0):
        run = output.open_run(out, settings, resume, is_first=rank == 0)   # errors in settings before reading the data
        training, validation = datasets(settings)
        loader, validation_loader = loaders(settings, training, validation, workers, rank, world_size)
        steps = _steps_per_epoch(loader, settings.accumulate)
        classes = training.classes or 0
        weights = class_weights(settings, training)
        trainer = backend.Trainer(settings, network(settings, training.channels, classes), classes, weights, device)
        if settings.init is not None and not run.history:
            load_weights(trainer.network, settings.init, source=settings.init_source)
        output.restore(run, out, trainer, classes, basis_of(trainer, training, validation))
        names = image_names(validation)
        dtypes = sorted({*getattr(training, "dtypes", ()), *getattr(validation, "dtypes", ())})
        add_events = output.prepare_folder(run, out, trainer, dtypes, tensorboard) if rank == 0 else None
        if rank == 0 and not quiet:
            print(*overview.lines(settings, out, training, validation, trainer), sep="\n", file=sys.stderr)
        with progress(settings, len(run.history), steps, quiet or rank > 0) as report_progress:
            while not should_stop(settings, run.history):
                epoch = len(run.history)
                batches, validation_batches = islice(loader.epoch(epoch), steps), validation_loader.epoch(epoch)
                row, validated = _run_epoch(trainer, settings, epoch, batches, validation_batches, report_progress)
                run.history.append(row)
                run.arrays = trainer.state()
                _check_finite(run, epoch)
                if rank == 0:
                    output.save_epoch(run, trainer, out, validated.cases(names, epoch + 1))
                    if add_events:
                        add_events(row)
        return run.history


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
) -> tuple[Row, Validation]:
    """Train for one epoch, counted from 0, then validate, and return the row of metrics and the counts of validation.

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
    evaluate = trainer.evaluate
    if settings.patch_size:
        evaluate = partial(windows.evaluate, trainer, settings.patch_size, settings.batch)
    with trainer.averaged():
        for images, masks in validation_batches:
            evaluate(images, masks)
    validated: Validation = trainer.pop_validation()
    loss, seconds = fsum(losses) / len(losses), perf_counter() - start_time
    row = report.row(epoch + 1, rate, loss, training_counts, validated, seconds)
    report_progress(epoch, None, row)
    return row, validated


def _check_finite(run: State, epoch: int) -> None:
    """Raise Diverged if a weight of the network in `run`, or its validation loss, is nan or infinite after an epoch."""
    weights = (array for name, array in run.arrays.items() if name.startswith("network."))
    if not all(np.isfinite(array).all() for array in weights):
        raise Diverged(_divergence_message("finite weights, got weights that are not finite after", epoch))
    if not isfinite(loss := run.history[-1]["validation_loss"]):
        raise Diverged(_divergence_message(f"a finite validation loss, got {loss} after", epoch))


def _divergence_message(problem: str, epoch: int) -> str:
    """Return the message of Diverged: "expected {problem} epoch {epoch + 1}" and what to try."""
    saved_text = f"; the state after epoch {epoch} is saved" if epoch else ""
    return f"expected {problem} epoch {epoch + 1}: try a lower --rate{saved_text}"
