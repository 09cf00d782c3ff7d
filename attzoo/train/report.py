"""What a run tells: figures from confusion matrices, a CSV, a picture of the curves, events for TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from time import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import look
from ..extras import missing
from .preparation import without_tensorflow
from .state import Row

VALID, TRAIN = look.COLORS.values()   # the two colours of every picture
LINES: Final = 8   # classes whose Dice is drawn; a picture of more says nothing


def figures(confusion: NDArray[Any]) -> tuple[float, float, list[float | None]]:
    """(K, K) counts of pixels, truth by prediction -> accuracy, mean IoU, Dice of each class.

    A class that is neither there nor predicted has no Dice (None) and no part in the mean; of no pixel all are 0.
    """
    counts = confusion.astype(np.float64)
    right, truth, found = np.diag(counts), counts.sum(1), counts.sum(0)
    seen = truth + found > 0
    iou = right[seen] / (truth + found - right)[seen]
    dice = [float(2 * r / (t + f)) if t + f else None for r, t, f in zip(right, truth, found, strict=True)]
    accuracy = right.sum() / counts.sum() if counts.any() else 0.0
    return float(accuracy), float(iou.mean()) if seen.any() else 0.0, dice


def row(epoch: int, rate: float, loss: float, train: NDArray[Any], valid: NDArray[Any], seconds: float) -> Row:
    """What an epoch, counted from 1, gave: the rate and loss it had, and figures of its confusion matrices."""
    accuracy, iou, dice = figures(valid)
    found: Row = {"epoch": epoch, "rate": rate, "loss": loss, "train_accuracy": figures(train)[0]}
    found |= {"validation_accuracy": accuracy, "mean_iou": iou} | {f"dice_{k}": d for k, d in enumerate(dice)}
    return found | {"seconds": round(seconds, 3)}


def as_csv(history: Sequence[Row]) -> bytes:
    """A line for every epoch, numbers in full; no Dice leaves its place empty."""
    text = StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def curves(history: Sequence[Row], title: str) -> bytes:
    """A PNG: the loss, accuracy and mean IoU, and the Dice of the classes, over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(11, 4), facecolor="white", layout="constrained")
    figure.suptitle(look.literal(title), fontsize=11)
    loss, shares, dice = figure.subplots(1, 3)
    marker = "o" if len(epochs) < 30 else ""
    style: dict[str, Any] = {"marker": marker, "markersize": 3, "linewidth": 1.5}
    loss.plot(epochs, [row["loss"] for row in history], color=TRAIN, **style)
    loss.set_title("training loss", fontsize=10)
    loss.set_ylim(0, 1.05 * max(row["loss"] for row in history) or 1)   # from 0, and a little above
    for name, color, label in (
        ("train_accuracy", TRAIN, "accuracy, training"),
        ("validation_accuracy", VALID, "accuracy, validation"),
        ("mean_iou", look.GREY, "mean IoU, validation"),
    ):
        shares.plot(epochs, [row[name] for row in history], color=color, label=label, **style)
    shares.set_title("shares of pixels", fontsize=10)
    names = [name for name in history[0] if name.startswith("dice_")]
    found = np.array([[np.nan if row[name] is None else row[name] for name in names] for row in history])
    for k in range(min(len(names), LINES)):
        dice.plot(epochs, found[:, k], label=f"class {k}", **style)
    if len(names) > LINES:
        means = [row[seen].mean() if (seen := ~np.isnan(row)).any() else np.nan for row in found]
        dice.plot(epochs, means, color="black", label=f"mean of {len(names)}", **style)
    dice.set_title("Dice, validation", fontsize=10)
    for axes in (loss, shares, dice):
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not loss:
            axes.set_ylim(0, 1.02)
            axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return look.png(figure)


def tensorboard(folder: Path) -> Callable[[Row], None]:
    """A function that adds a row's numbers to the events in a folder, which TensorBoard shows as curves.

    Raises ModuleNotFoundError, with the install command, where tensorboard is absent.
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
        numbers = {name: v for name, v in row.items() if name != "epoch" and v is not None}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        writer.add_event(Event(wall_time=time(), step=row["epoch"], summary=Summary(value=values)))
        writer.flush()

    return add
