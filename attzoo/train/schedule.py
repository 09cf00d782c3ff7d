"""Learning rates of the epochs of a run, and when it stops early. Both follow from the settings and the history."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi

from .settings import Settings
from .state import Row

METRIC = "mean_iou"   # column of the history by which the best epoch is chosen


def learning_rate(settings: Settings, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0.

    During the warm-up it is rate * (epoch + 1) / (warmup + 1); the schedule starts with the epoch after it. These are
    the rates of SequentialLR with LinearLR(1 / (warmup + 1), total_iters=warmup), and after it StepLR(every, factor)
    or CosineAnnealingLR(epochs - warmup) of torch.optim.lr_scheduler.
    """
    if epoch < settings.warmup:
        return settings.rate * (epoch + 1) / (settings.warmup + 1)
    epoch -= settings.warmup
    if settings.schedule == "step":
        assert settings.factor is not None
        assert settings.every is not None
        return settings.rate * settings.factor ** (epoch // settings.every)
    if settings.schedule == "cosine":
        return settings.rate * (1 + cos(pi * epoch / (settings.epochs - settings.warmup))) / 2
    return settings.rate


def best_epoch(history: Sequence[Row], since: int = 1) -> int:
    """Return the first epoch with the highest mean IoU, of the epochs from `since` on. Epochs count from 1.

    history: the rows of all epochs, at least `since` of them.
    """
    return max(range(since, len(history) + 1), key=lambda epoch: history[epoch - 1][METRIC])


def should_stop(settings: Settings, history: Sequence[Row]) -> bool:
    """Return whether a run with this history ends.

    It ends if all epochs are done, or if at least `patience` epochs followed the best one, see `best_epoch`.
    """
    if len(history) >= settings.epochs:
        return True
    return bool(settings.patience and history and len(history) - best_epoch(history) >= settings.patience)


def stop_text(settings: Settings, history: Sequence[Row]) -> str:
    """Return a line that says why a run with this history stopped early, "" if it did not."""
    if len(history) >= settings.epochs or not should_stop(settings, history):
        return ""
    reason = f"no epoch after {best_epoch(history)} had a higher mean IoU"
    fix = "to continue, resume with a larger --patience"
    return f"stopped after epoch {len(history)} of {settings.epochs}: {reason}; {fix}"
