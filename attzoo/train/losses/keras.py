"""The losses in Keras: logits (N, *S, K), masks (N, *S)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ...ops.keras import keras
from . import ALPHA, BETA, GAMMA, IGNORE, SMALLEST

ops = keras.ops
Terms = Iterable[tuple[Any, Any]]   # totals, and what to divide them by


def loss(name: str, logits: Any, masks: Any, everywhere: Callable[[Any], Any] = lambda count: count) -> Any:
    """The loss `name`, a scalar; `everywhere` adds a count to those of the other devices."""
    terms = LOSSES[name](ops.cast(logits, "float32"), ops.cast(masks, "int32"))
    return sum(total / ops.maximum(everywhere(count), 1.0) for total, count in terms)


def cross_entropy(logits: Any, masks: Any) -> Terms:
    valid = _valid(masks)
    inside = ops.where(masks == IGNORE, 0, masks)
    each = ops.sparse_categorical_crossentropy(inside, logits, from_logits=True) * valid
    yield ops.sum(each), ops.sum(valid)


def bce(logits: Any, masks: Any) -> Terms:
    t, valid = _targets(masks, logits.shape[-1])
    each = ops.binary_crossentropy(t, logits, from_logits=True) * valid
    yield ops.sum(each), ops.sum(valid) * logits.shape[-1]


def dice(logits: Any, masks: Any) -> Terms:
    found, missed, wrong = _overlaps(logits, masks)
    yield _mean((missed + wrong) / (2 * found + missed + wrong + 1), masks)


def focal_tversky(logits: Any, masks: Any) -> Terms:
    found, missed, wrong = _overlaps(logits, masks)
    weighted = ALPHA * missed + BETA * wrong
    yield _mean(ops.maximum(weighted / (found + weighted + 1), SMALLEST) ** (1 / GAMMA), masks)


def both(logits: Any, masks: Any) -> Terms:
    yield from cross_entropy(logits, masks)
    yield from dice(logits, masks)


LOSSES = {f.__name__: f for f in (cross_entropy, bce, dice, focal_tversky, both)}


def _valid(masks: Any) -> Any:
    """1 where a pixel counts: (N, *S)."""
    return ops.cast(masks != IGNORE, "float32")


def _targets(masks: Any, outputs: int) -> tuple[Any, Any]:
    """One-hot masks (N, *S, K), or where there is one output (N, *S, 1); and 1 where a pixel counts (N, *S, 1)."""
    classes = ops.arange(outputs, dtype="int32") if outputs > 1 else ops.ones(1, "int32")
    return ops.cast(masks[..., None] == classes, "float32"), _valid(masks)[..., None]


def _overlaps(logits: Any, masks: Any) -> tuple[Any, Any, Any]:
    """sum(p t), sum((1 - p) t) and sum(p (1 - t)), each (N, K)."""
    p = ops.softmax(logits, axis=-1)
    t, valid = _targets(masks, logits.shape[-1])
    p, space = p * valid, tuple(range(1, len(logits.shape) - 1))
    found = ops.sum(p * t, axis=space)
    return found, ops.sum(t, axis=space) - found, ops.sum(p, axis=space) - found


def _mean(each: Any, masks: Any) -> tuple[Any, Any]:
    """(N, K) -> the sum over images of their means over classes, and the number of images that have a pixel."""
    counts = ops.max(_valid(masks), axis=tuple(range(1, len(masks.shape))))
    return ops.sum(ops.mean(each, axis=1) * counts), ops.sum(counts)
