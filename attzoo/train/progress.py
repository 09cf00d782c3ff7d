"""The progress bar of a training run, and a line for each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .settings import Settings
from .state import Row

Report = Callable[[int, float | None, Row | None], None]   # epoch from 0; the loss of a step, or the row of the epoch


@contextmanager
def progress(settings: Settings, epochs_done: int, steps: int, quiet: bool) -> Iterator[Report]:
    """Yield a function to call after every step and every epoch. It prints to stderr, or nothing if `quiet`.

    Call it as report(epoch, loss, None) after a step, which advances a bar on a terminal, and as
    report(epoch, None, row) after an epoch, which prints a line. Epochs count from 0.

    Args:
        settings: the settings of the run.
        epochs_done: the number of epochs that the run had before, if it is resumed.
        steps: the number of steps in an epoch.
        quiet: whether to print nothing.
    """
    if quiet:
        yield lambda epoch, loss, row: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, iou = bar.add_task("", total=settings.epochs * steps, completed=epochs_done * steps), ""

        def report(epoch: int, loss: float | None, row: Row | None) -> None:
            """Print the line of an epoch, or advance the bar by one step if `row` is None."""
            nonlocal iou
            if row:
                iou = f"  mean IoU {row['mean_iou']:.3f}"
                losses_text = f"loss {row['loss']:.4f}  validation loss {row['validation_loss']:.4f}"
                metrics_text = f"{losses_text}  accuracy {row['validation_accuracy']:.3f}{iou}"
                line = f"epoch {row['epoch']:>3}/{settings.epochs}  {metrics_text}  {row['seconds']:.1f} s"
                bar.console.print(line, highlight=False, soft_wrap=True)
            else:
                bar.update(task, advance=1, description=f"epoch {epoch + 1}/{settings.epochs}  loss {loss:.4f}{iou}")

        yield report
