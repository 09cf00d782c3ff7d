"""The losses in PyTorch: logits (N, K, *S), masks (N, *S)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ALPHA, BETA, GAMMA, IGNORE, SMALLEST

Terms = Iterable[tuple[Tensor, Tensor]]   # totals, and what to divide them by


def loss(
    name: str, logits: Tensor, masks: Tensor, everywhere: Callable[[Tensor], Tensor] = lambda count: count
) -> Tensor:
    """The loss `name`, a scalar; `everywhere` adds a count to those of the other devices."""
    terms = LOSSES[name](logits.float(), masks)
    return torch.stack([total / everywhere(count).clamp(min=1) for total, count in terms]).sum()


def cross_entropy(logits: Tensor, masks: Tensor) -> Terms:
    yield F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum"), (masks != IGNORE).sum()


def bce(logits: Tensor, masks: Tensor) -> Terms:
    t, valid = _targets(masks, logits.shape[1])
    each = F.binary_cross_entropy_with_logits(logits, t, reduction="none") * valid
    yield each.sum(), valid.sum() * logits.shape[1]


def dice(logits: Tensor, masks: Tensor) -> Terms:
    found, missed, wrong = _overlaps(logits, masks)
    yield _mean((missed + wrong) / (2 * found + missed + wrong + 1), masks)


def focal_tversky(logits: Tensor, masks: Tensor) -> Terms:
    found, missed, wrong = _overlaps(logits, masks)
    weighted = ALPHA * missed + BETA * wrong
    yield _mean((weighted / (found + weighted + 1)).clamp(min=SMALLEST) ** (1 / GAMMA), masks)


def both(logits: Tensor, masks: Tensor) -> Terms:
    yield from cross_entropy(logits, masks)
    yield from dice(logits, masks)


LOSSES = {f.__name__: f for f in (cross_entropy, bce, dice, focal_tversky, both)}


def _targets(masks: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """One-hot masks (N, K, *S), or where there is one output (N, 1, *S); and 1 where a pixel counts (N, 1, *S)."""
    valid = (masks != IGNORE)[:, None]
    classes = torch.arange(outputs, device=masks.device) if outputs > 1 else torch.ones(1, device=masks.device)
    t = masks[:, None] == classes.view(-1, *(1,) * (masks.ndim - 1))
    return t.float(), valid.float()


def _overlaps(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum(p t), sum((1 - p) t) and sum(p (1 - t)), each (N, K)."""
    p = logits.softmax(1)
    t, valid = _targets(masks, logits.shape[1])
    p, t = (p * valid).flatten(2), t.flatten(2)
    found = (p * t).sum(2)
    return found, t.sum(2) - found, p.sum(2) - found


def _mean(each: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> the sum over images of their means over classes, and the number of images that have a pixel."""
    counts = (masks != IGNORE).flatten(1).any(1)
    return (each.mean(1) * counts).sum(), counts.sum()
