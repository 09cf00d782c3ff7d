"""The loop, one for both frameworks: epochs of steps and evaluation, and all that is written down about them."""

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
from ..data import IGNORE, Labels, package
from ..files import PREFIX, locked, remove_stale, usable_folder, write
from . import best, overview, report, state
from .basis import Basis, basis_of
from .batches import Batches, Loader, check_guard
from .data import Dataset, Folder, Preparation, check_scales
from .files import find
from .phantoms import Phantoms
from .settings import Settings, rate
from .state import Row, State
from .survey import check_alike, check_classes, check_gaps, check_size

CHANNELS: Final = (16, 32, 64)   # where neither the settings nor a variant says
FILES: Final = {
    best.NAME: "the network of the best epoch; either framework opens it: attzoo.load(file, backend=...)",
    "history.csv": "rate, loss, accuracy, mean IoU, Dice and seconds of every epoch",
    "curves.png": "the same as a picture",
    "settings.json": "what was trained and how",
    state.NAME: "where --resume goes on",
}
Hear = Callable[[int, float | None, Row | None], None]   # epoch, and the loss of a step or the row of an epoch


class Diverged(ValueError):
    """The loss or a weight is no number any more."""


def train(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    workers: int = 0,
    tensorboard: bool = False,
    quiet: bool = False,
) -> list[Row]:
    """Train a U-Net, and write into the folder `out` what FILES says and checkpoints; a row for every epoch.

    resume: go on with the run in `out`, however it was stopped, at the last epoch that it finished. On a CPU, what
    comes out is bit for bit what would have come without the stop. The data may have moved, if no file has changed.
    workers: >= 0 processes that read ahead. tensorboard: write its events, too. quiet: print neither what was found nor
    progress.
    Under torchrun every process calls this, and the first one writes.
    Raises ValueError when `out` is no new or empty folder, or, to resume, holds no run, a broken one, or one of other
    settings, other images or masks, another framework or number of devices;
    Diverged when the loss is not finite, what the last good epoch left staying; and as the data and the network do.
    """
    out, workers = Path(out), contract.integer("workers", workers, 0)
    check_guard(workers)
    if settings.data is not None:
        settings = replace(settings, data=str(Path(settings.data).resolve()))
    contract.triton_first()
    for needed in ("torch", "rich", "matplotlib.figure"):   # missed now, not after an epoch
        package(needed)
    with registry.naming_extra("training"):
        body = import_module(f"{__package__}.{settings.backend}")
    with body.joined() as (rank, world), _alone(out, first=rank == 0):
        run = _opened(out, settings, resume, first=rank == 0)   # before anything that takes time
        training, validation = datasets(settings)
        classes = training.classes or 0
        share = {"seed": settings.seed, "rank": rank, "world_size": world}
        alone = len(training) > settings.batch and len(training) % settings.batch == 1   # norms take no single value
        drop_last = world > 1 or alone   # of several processes, some would wait for others
        batches = Batches(len(training), settings.batch, drop_last=drop_last, **share)
        pin = settings.backend == "torch"
        learn = Loader(training, batches, workers, pin)
        judge = Loader(validation, Batches(len(validation), settings.batch, shuffle=False, **share), workers, pin)
        steps = len(learn) // settings.accumulate * settings.accumulate
        if not steps:
            raise ValueError(f"expected at least {settings.accumulate} batches to accumulate, got {len(learn)}")
        trainer = body.Trainer(settings, network(settings, training.channels, classes), classes)
        _restored(run, out, trainer, classes, basis_of(trainer, training, validation))
        dtypes = sorted({*getattr(training, "dtypes", ()), *getattr(validation, "dtypes", ())})
        add = _begun(run, out, trainer, dtypes, tensorboard) if rank == 0 else None
        if rank == 0 and not quiet:
            print(*overview.lines(settings, out, training, validation, trainer), sep="\n", file=sys.stderr)
        with progress(settings, len(run.history), steps, quiet or rank > 0) as hear:
            for epoch in range(len(run.history), settings.epochs):
                row = _epoch(trainer, settings, epoch, islice(learn.epoch(epoch), steps), judge.epoch(epoch), hear)
                run.history.append(row)
                run.arrays = trainer.state()
                if not all(np.isfinite(a).all() for name, a in run.arrays.items() if name.startswith("network.")):
                    raise Diverged(_diverged(epoch, "weights that are not"))
                if rank == 0:
                    _keep(run, trainer.network, out)
                    if add:
                        add(row)
        return run.history


def datasets(settings: Settings) -> tuple[Dataset, Dataset]:
    """What a run trains on and is judged by. Raises as the data do, and ValueError where they are not as settings say.

    The number of classes is known of both.
    """
    if settings.data is None:
        assert settings.phantoms is not None
        held = max(1, min(round(settings.validation * settings.phantoms), settings.phantoms - 1))
        make = partial(Phantoms, size=settings.size or (64,) * settings.dims, seed=settings.seed)
        return make(settings.phantoms - held), make(held, start=settings.phantoms - held)
    assert settings.normalise is not None
    assert settings.flip is not None
    preparation = Preparation(settings.size, settings.normalise)
    train, valid = find(settings.data, settings.validation, settings.seed)
    given: dict[str, Any] = {"classes": settings.classes, "labels": settings.labels and Labels(settings.labels)}
    training = Folder(train, preparation, flip=settings.flip, seed=settings.seed, **given)
    validation = Folder(valid, preparation, **given)
    for found in (training, validation):
        if (dims := found.spatial_dims) != settings.dims:
            got = f"{settings.dims} spatial axes, got {found.pairs[0][0]} of {dims}: set --dims {dims}"
            raise ValueError(f"expected images of {got}")
    check_scales(preparation, [training.first, validation.first])
    if validation.channels != training.channels:
        raise ValueError(f"expected {training.channels} channels to validate on, got {validation.channels}")
    training.classes = validation.classes = _classes(training, validation)
    return training, validation


def _classes(training: Folder, validation: Folder) -> int:
    """The number of classes. Raises ValueError where masks hold others, or what is no class."""
    check_alike([training.found, validation.found], training.labels)
    if training.classes is None:
        check_gaps(training.counts + validation.counts)
    check_classes(training.counts, validation.counts, len(training))
    check_size(training.found, training.labels, training.preparation.size)
    return training.classes or max(training.counts.keys() - {IGNORE}) + 1


def network(settings: Settings, channels: int, classes: int) -> Callable[..., Any]:
    """What makes the network that the settings mean, for images of so many channels; asked with backend=..."""
    given = dict(settings.network)
    if settings.channels or not settings.variant:
        given["channels"] = settings.channels or CHANNELS
    given |= {"spatial_dims": settings.dims, "head": "linear", "variant": settings.variant}
    return partial(registry.create, "unet", channels, settings.outputs(classes), **given)


def _epoch(
    trainer: Any, settings: Settings, epoch: int, learn: Iterable[Any], judge: Iterable[Any], hear: Hear
) -> Row:
    """Train for an epoch, counted from 0, and evaluate; the row that it gives."""
    began, speed, losses = perf_counter(), rate(settings, epoch), []
    trainer.begin(speed, int(np.random.SeedSequence((settings.seed, epoch)).generate_state(1)[0]))
    for images, masks in learn:
        losses.append(trainer.step(images, masks))
        if not isfinite(losses[-1]):
            raise Diverged(_diverged(epoch, f"{losses[-1]} in step {len(losses)}"))
        hear(epoch, losses[-1], None)
    learned = trainer.counts()
    for images, masks in judge:
        trainer.evaluate(images, masks)
    row = report.row(epoch + 1, speed, fsum(losses) / len(losses), learned, trainer.counts(), perf_counter() - began)
    hear(epoch, None, row)
    return row


def _diverged(epoch: int, got: str) -> str:
    kept = f"; the state after epoch {epoch} is kept" if epoch else ""
    return f"expected a finite loss, got {got} of epoch {epoch + 1}: try a lower rate{kept}"


# ---- files -----------------------------------------------------------------------------------------


@contextmanager
def _alone(out: Path, first: bool) -> Iterator[None]:
    """Inside, no other run writes into the folder. The first of several processes asks; new folders left empty go."""
    if not first:
        yield
        return
    made = [each for each in (usable_folder(out), *out.parents) if not each.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out) as is_free:
            if not is_free:
                fix = "wait until it has ended, or choose another --out"
                raise ValueError(f"expected a folder that no other run writes to, got {out} with a run going on: {fix}")
            yield
    finally:
        with suppress(OSError):   # it holds what it should
            for each in made:
                each.rmdir()


def _opened(out: Path, settings: Settings, resume: bool, first: bool) -> State:
    """The run in a folder, or a new one; the first of several processes looks whether the folder is free."""
    if resume:
        state.agreed(out, settings.config())
        run = state.load(out) if (out / state.NAME).exists() else State(settings)
        run.settings = settings   # whose data may have moved
        if settings.data is not None and not Path(settings.data).is_dir():
            fix = "set --data to where they are now"
            raise FileNotFoundError(f"expected the data of the run in {out} at {settings.data}, got no folder: {fix}")
        return run
    if first and out.exists() and (there := sorted(p.name for p in out.iterdir() if not p.name.startswith(PREFIX))):
        if there == [state.SETTINGS]:
            state.stored(out)   # raises, unless it is of a run that ended before its first epoch did: nothing is lost
            return State(settings)
        what = "a run: resume it, or choose another" if state.NAME in there else f"{there[0]}: choose another"
        raise ValueError(f"expected a new or empty folder, got {out} with {what}")
    return State(settings)


def _restored(run: State, out: Path, trainer: Any, classes: int, basis: Basis) -> None:
    """Let a trainer go on from a run that has begun. Raises ValueError where that is broken, or began elsewhere."""
    if not run.history:
        run.basis, run.contents = dict(basis.words), dict(basis.contents)
        return
    basis.check(run, out)
    try:
        if (known := sum(name.startswith("dice_") for name in run.history[0])) != classes:
            raise ValueError(f"expected a Dice of {classes} classes, got {known}")
        trainer.restore(run.arrays)
    except ValueError as err:
        raise ValueError(f"{out / state.NAME} is not the state of this run: {err}") from err


def _begun(
    run: State, out: Path, trainer: Any, dtypes: Sequence[str], tensorboard: bool
) -> Callable[[Row], None] | None:
    """Make the folder ready for the epochs to come; what adds events, where they are wanted."""
    remove_stale(out)
    write(out / state.SETTINGS, (json.dumps(run.settings.config() | {state.DTYPES: dtypes}, indent=1) + "\n").encode())
    if run.history:
        _mend_best(run, trainer.network, out)
        _report(run, out)
    return report.tensorboard(out / "tensorboard") if tensorboard else None


def _mend_best(run: State, network: Any, out: Path) -> None:
    """See that the network of the best epoch is there, or say that it is lost, and go on with the last epoch's."""
    have, epoch = best.digest_if_there(out / best.NAME), len(run.history)
    if run.best and have == run.best.digest:
        return
    if not run.best or run.best.epoch != epoch:   # or the last epoch was cut short between the state and the network
        got = "missing" if have is None else "not the file that was saved"
        lost = f"the network of epoch {run.best.epoch if run.best else '?'}, the best, is lost"
        print(f"{out / best.NAME} is {got}: {lost}; it is now that of epoch {epoch}, the last", file=sys.stderr)
    since = run.best.since if run.best and run.best.epoch == epoch else epoch
    run.best = best.prepare(network, out, epoch, since)
    run.save(out)
    best.put(out)


def _keep(run: State, network: Any, out: Path) -> None:
    """Write down an epoch. The best network takes its place after the state, from which a kill between is mended."""
    last = run.history[-1]
    every, since = run.settings.checkpoint_every, run.best.since if run.best else 1
    if every and last["epoch"] % every == 0:
        portable.save(network, out / f"epoch-{last['epoch']:03}.safetensors")
    is_best = all(last["mean_iou"] > row["mean_iou"] for row in run.history[since - 1 : -1])
    if is_best:
        run.best = best.prepare(network, out, last["epoch"], since)
    run.save(out)
    if is_best:
        best.put(out)
    _report(run, out)


def summary(out: Path) -> tuple[list[str], bool]:
    """What a run left in its folder, a line for each file, and whether all of it is there and as it was saved."""
    saved = state.load(out, arrays=False).best
    told, is_whole = [], True
    for name, what in FILES.items():
        have = best.digest_if_there(out / name)
        is_good = have is not None and (name != best.NAME or (saved is not None and have == saved.digest))
        is_whole &= is_good
        what = saved.text() if name == best.NAME and saved else what
        missing = f"{'missing' if have is None else 'not the file that was saved'}, should be {what}"
        told.append(f"{out / name}: {what if is_good else missing}")
    return told, is_whole


def _report(run: State, out: Path) -> None:
    write(out / "history.csv", report.as_csv(run.history))
    write(out / "curves.png", report.curves(run.history, _title(run.settings)))


def _title(settings: Settings) -> str:
    name = settings.variant or "U-Net"
    return f"{name} on {Path(settings.data).name if settings.data else 'phantoms'}, {settings.backend}"


# ---- progress --------------------------------------------------------------------------------------


@contextmanager
def progress(settings: Settings, done: int, steps: int, quiet: bool) -> Iterator[Hear]:
    """A function that shows steps as a bar, where there is a terminal, and every epoch as a line, on stderr."""
    if quiet:
        yield lambda epoch, loss, row: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, iou = bar.add_task("", total=settings.epochs * steps, completed=done * steps), ""

        def hear(epoch: int, loss: float | None, row: Row | None) -> None:
            nonlocal iou
            if row:
                iou = f"  mean IoU {row['mean_iou']:.3f}"
                found = f"loss {row['loss']:.4f}  accuracy {row['validation_accuracy']:.3f}{iou}"
                told = f"epoch {row['epoch']:>3}/{settings.epochs}  {found}  {row['seconds']:.1f} s"
                bar.console.print(told, highlight=False, soft_wrap=True)
            else:
                bar.update(task, advance=1, description=f"epoch {epoch + 1}/{settings.epochs}  loss {loss:.4f}{iou}")

        yield hear
