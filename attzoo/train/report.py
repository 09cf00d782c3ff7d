"""Reports of a run: metrics from confusion matrices, a CSV, a plot of the curves, TensorBoard events."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from time import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import plotting
from ..extras import missing
from .preparation import without_tensorflow
from .state import Row
from .validation import Validation, dice_of

VALIDATION_COLOR, TRAINING_COLOR = plotting.COLORS.values()
MAX_CURVES: Final = 8   # largest number of classes whose Dice is plotted


def metrics(confusion: NDArray[Any]) -> tuple[float, float, list[float | None]]:
    """Compute metrics from a confusion matrix.

    Args:
        confusion: the number of pixels (K, K), by true class (rows) and predicted class (columns).

    Returns:
        The accuracy, the mean IoU and the Dice of each class. A class that has no pixel and is not predicted has the
        Dice None and is left out of the mean. Without pixels, accuracy and mean IoU are 0.
    """
    counts = confusion.astype(np.float64)
    correct, actual, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    is_present = actual + predicted > 0
    iou = correct[is_present] / (actual + predicted - correct)[is_present]
    accuracy = correct.sum() / counts.sum() if counts.any() else 0.0
    return float(accuracy), float(iou.mean()) if is_present.any() else 0.0, dice_of(correct, actual, predicted)


def row(epoch: int, rate: float, loss: float, training: NDArray[Any], validation: Validation, seconds: float) -> Row:
    """Return the row of metrics of an epoch.

    Args:
        epoch: the epoch, counted from 1.
        rate: its learning rate.
        loss: its mean training loss.
        training: the confusion matrix (K, K) of training, as in `metrics`.
        validation: the loss and the counts of validation.
        seconds: the time that the epoch took.
    """
    accuracy, iou, dice = metrics(validation.confusion)
    row: Row = {"epoch": epoch, "rate": rate, "loss": loss, "validation_loss": validation.loss}
    row |= {"train_accuracy": metrics(training)[0]}
    row |= {"validation_accuracy": accuracy, "mean_iou": iou} | {f"dice_{k}": value for k, value in enumerate(dice)}
    return row | {"seconds": round(seconds, 3)}


def as_csv(rows: Sequence[Row]) -> bytes:
    """Return the bytes of a CSV with a line of titles and one for every row. A Dice of None is an empty cell."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def curves(history: Sequence[Row], title: str) -> bytes:
    """Return a PNG with plots of loss, of accuracy and mean IoU, and of the Dice of the classes over epochs.

    history: the row of metrics of each epoch. title: the title of the figure.
    """
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(11, 4), facecolor="white", layout="constrained")
    figure.suptitle(plotting.escape_text(title), fontsize=11)
    loss_axes, share_axes, dice_axes = figure.subplots(1, 3)
    style: dict[str, Any] = {"marker": "o" if len(epochs) < 30 else "", "markersize": 3, "linewidth": 1.5}
    for axes, name, color, label in (
        (loss_axes, "loss", TRAINING_COLOR, "training"),
        (loss_axes, "validation_loss", VALIDATION_COLOR, "validation"),
        (share_axes, "train_accuracy", TRAINING_COLOR, "accuracy, training"),
        (share_axes, "validation_accuracy", VALIDATION_COLOR, "accuracy, validation"),
        (share_axes, "mean_iou", plotting.GREY, "mean IoU, validation"),
    ):
        axes.plot(epochs, [row[name] for row in history], color=color, label=label, **style)
    loss_axes.set_title("loss", fontsize=10)
    loss_axes.set_ylim(0, 1.05 * max(max(row["loss"], row["validation_loss"]) for row in history) or 1)
    share_axes.set_title("shares of pixels", fontsize=10)
    _plot_dice(dice_axes, epochs, history, style)
    for axes in (loss_axes, share_axes, dice_axes):
        _style_axes(axes, has_shares=axes is not loss_axes)
    return plotting.png(figure)


def _plot_dice(axes: Any, epochs: Sequence[int], history: Sequence[Row], style: Mapping[str, Any]) -> None:
    """Plot the Dice of the first MAX_CURVES classes on `axes`, and if there are more classes, the mean of all.

    epochs: numbers of the epochs. history: their rows of metrics. style: keyword arguments of the plots.
    """
    names = [name for name in history[0] if name.startswith("dice_")]
    dice = np.array([[np.nan if row[name] is None else row[name] for name in names] for row in history])
    for k in range(min(len(names), MAX_CURVES)):
        axes.plot(epochs, dice[:, k], label=f"class {k}", **style)
    if len(names) > MAX_CURVES:
        means = [row[defined].mean() if (defined := ~np.isnan(row)).any() else np.nan for row in dice]
        axes.plot(epochs, means, color="black", label=f"mean of {len(names)}", **style)
    axes.set_title("Dice, validation", fontsize=10)


def _style_axes(axes: Any, has_shares: bool) -> None:
    """Set the labels, ticks, grid and legend of a plot. With `has_shares`, set its range to 0 to 1."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    if has_shares:
        axes.set_ylim(0, 1.02)


def tensorboard(folder: Path) -> Callable[[Row], None]:
    """Return a function that writes the numbers of a row as TensorBoard events into a folder.

    Raises:
        ModuleNotFoundError: tensorboard is missing. The message has the install command.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ModuleNotFoundError as err:
        if err.name != "tensorboard":
            raise
        raise ModuleNotFoundError(missing("tensorboard", "train", "--tensorboard"), name=err.name) from err
    with without_tensorflow():
        writer = EventFileWriter(str(folder))

    def add(row: Row) -> None:
        """Write the numbers of a row as TensorBoard events."""
        numbers = {name: value for name, value in row.items() if name != "epoch" and value is not None}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        writer.add_event(Event(wall_time=time(), step=row["epoch"], summary=Summary(value=values)))
        writer.flush()

    return add
