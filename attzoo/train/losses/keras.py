"""The losses in Keras: logits (N, *S, K), masks (N, *S)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ...ops.keras import keras
from . import ALPHA, BETA, GAMMA, IGNORE, SMALLEST

ops = keras.ops
Terms = Iterable[tuple[Any, Any]]   # pairs of a sum and the number to divide it by


def loss(name: str, logits: Any, masks: Any, sum_devices: Callable[[Any], Any] = lambda count: count) -> Any:
    """Return the loss `name`, a key of LOSSES, of logits (N, *S, K) and masks (N, *S), as a float32 scalar.

    `sum_devices` returns the sum of a count over all devices that share the batch.
    """
    terms = LOSSES[name](ops.cast(logits, "float32"), ops.cast(masks, "int32"))
    return sum(total / ops.maximum(sum_devices(count), 1.0) for total, count in terms)


def cross_entropy(logits: Any, masks: Any) -> Terms:
    """Yield (cross-entropy summed over pixels, number of pixels). Pixels of IGNORE are left out."""
    valid = _valid(masks)
    classes = ops.where(masks == IGNORE, 0, masks)
    losses = ops.sparse_categorical_crossentropy(classes, logits, from_logits=True) * valid
    yield ops.sum(losses), ops.sum(valid)


def bce(logits: Any, masks: Any) -> Terms:
    """Yield (binary cross-entropy summed over pixels and outputs, number of pixels times outputs)."""
    targets, valid = _targets(masks, logits.shape[-1])
    losses = ops.binary_crossentropy(targets, logits, from_logits=True) * valid
    yield ops.sum(losses), ops.sum(valid) * logits.shape[-1]


def dice(logits: Any, masks: Any) -> Terms:
    """Yield (Dice loss summed over images, number of images with pixels that are not IGNORE)."""
    true_positives, false_negatives, false_positives = _overlaps(logits, masks)
    errors = false_negatives + false_positives
    yield _mean_classes(errors / (2 * true_positives + errors + 1), masks)


def focal_tversky(logits: Any, masks: Any) -> Terms:
    """Yield (focal Tversky loss summed over images, number of images with pixels that are not IGNORE)."""
    true_positives, false_negatives, false_positives = _overlaps(logits, masks)
    errors = ALPHA * false_negatives + BETA * false_positives
    yield _mean_classes(ops.maximum(errors / (true_positives + errors + 1), SMALLEST) ** (1 / GAMMA), masks)


def both(logits: Any, masks: Any) -> Terms:
    """Yield the pair of `cross_entropy`, then that of `dice`; the loss is the sum of both quotients."""
    yield from cross_entropy(logits, masks)
    yield from dice(logits, masks)


LOSSES = {loss.__name__: loss for loss in (cross_entropy, bce, dice, focal_tversky, both)}


def _valid(masks: Any) -> Any:
    """Return 1 for pixels that are not IGNORE, else 0: float32 (N, *S)."""
    return ops.cast(masks != IGNORE, "float32")


def _targets(masks: Any, outputs: int) -> tuple[Any, Any]:
    """Return one-hot masks (N, *S, K), or (N, *S, 1) for one output; and 1 for pixels not IGNORE, else 0 (N, *S, 1)."""
    classes = ops.arange(outputs, dtype="int32") if outputs > 1 else ops.ones(1, "int32")
    return ops.cast(masks[..., None] == classes, "float32"), _valid(masks)[..., None]


def _overlaps(logits: Any, masks: Any) -> tuple[Any, Any, Any]:
    """Return the sums over pixels p t, (1 - p) t and p (1 - t), shape (N, K) each.

    p is softmax(logits), t the one-hot mask. Pixels of IGNORE are left out.
    """
    probabilities = ops.softmax(logits, axis=-1)
    targets, valid = _targets(masks, logits.shape[-1])
    probabilities, axes = probabilities * valid, tuple(range(1, len(logits.shape) - 1))
    true_positives = ops.sum(probabilities * targets, axis=axes)
    return (
        true_positives,
        ops.sum(targets, axis=axes) - true_positives,
        ops.sum(probabilities, axis=axes) - true_positives,
    )


def _mean_classes(losses: Any, masks: Any) -> tuple[Any, Any]:
    """Return the sum over images of the mean of losses (N, K) over classes, and the number of images.

    Images in which every pixel is IGNORE are left out.
    """
    has_pixels = ops.max(_valid(masks), axis=tuple(range(1, len(masks.shape))))
    return ops.sum(ops.mean(losses, axis=1) * has_pixels), ops.sum(has_pixels)
