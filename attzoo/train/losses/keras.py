"""The losses in Keras: logits (N, *S, K), masks (N, *S)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...ops.keras import keras
from . import ALPHA, BETA, GAMMA, IGNORE, SMALLEST, SUMS, TINY, WEIGHTED

ops = keras.ops
Term = tuple[Any, Any]   # a sum, and the number to divide it by


def loss(
    name: str,
    logits: Any,
    masks: Any,
    sum_devices: Callable[[Any], Any] = lambda count: count,
    weights: Sequence[float] | None = None,
) -> Any:
    """Return the loss `name`, a key of LOSSES or SUMS, of logits (N, *S, K) and masks (N, *S), as a float32 scalar.

    `sum_devices` returns the sum of a count over all devices that share the batch. `weights` has a weight for each
    class, for the losses WEIGHTED.
    """
    return sum(total / ops.maximum(sum_devices(count), TINY) for total, count in terms(name, logits, masks, weights))


def terms(name: str, logits: Any, masks: Any, weights: Sequence[float] | None = None) -> list[Term]:
    """Return the terms of the loss `name`, of which `loss` is the sum of quotients. Arguments as `loss`."""
    logits, masks, names = ops.cast(logits, "float32"), ops.cast(masks, "int32"), SUMS.get(name, (name,))
    return [LOSSES[part](logits, masks, *((weights,) if part in WEIGHTED else ())) for part in names]


def cross_entropy(logits: Any, masks: Any, weights: Sequence[float] | None = None) -> Term:
    """Return (cross-entropy summed over pixels, number of pixels). Pixels of IGNORE are left out."""
    pixel_weights = _pixel_weights(masks, weights)
    classes = ops.where(masks == IGNORE, 0, masks)
    losses = ops.sparse_categorical_crossentropy(classes, logits, from_logits=True) * pixel_weights
    return ops.sum(losses), ops.sum(pixel_weights)


def bce(logits: Any, masks: Any, weights: Sequence[float] | None = None) -> Term:
    """Return (binary cross-entropy summed over pixels and outputs, number of pixels times outputs)."""
    pixel_weights = _pixel_weights(masks, weights)[..., None]
    targets = _targets(masks, logits.shape[-1])[0]
    losses = ops.binary_crossentropy(targets, logits, from_logits=True) * pixel_weights
    return ops.sum(losses), ops.sum(pixel_weights) * logits.shape[-1]


def dice(logits: Any, masks: Any) -> Term:
    """Return (Dice loss summed over images, number of images with pixels that are not IGNORE)."""
    true_positives, false_negatives, false_positives = _overlaps(logits, masks)
    errors = false_negatives + false_positives
    return _mean_classes(errors / (2 * true_positives + errors + 1), masks)


def focal_tversky(logits: Any, masks: Any) -> Term:
    """Return (focal Tversky loss summed over images, number of images with pixels that are not IGNORE)."""
    true_positives, false_negatives, false_positives = _overlaps(logits, masks)
    errors = ALPHA * false_negatives + BETA * false_positives
    return _mean_classes(ops.maximum(errors / (true_positives + errors + 1), SMALLEST) ** (1 / GAMMA), masks)


LOSSES: dict[str, Callable[..., Term]] = {loss.__name__: loss for loss in (cross_entropy, bce, dice, focal_tversky)}


def _pixel_weights(masks: Any, weights: Sequence[float] | None) -> Any:
    """Return the weight of the class of each pixel, or 1 without weights, and 0 for pixels of IGNORE: (N, *S)."""
    valid = _valid(masks)
    if weights is None:
        return valid
    return ops.take(ops.array(weights, "float32"), ops.where(masks == IGNORE, 0, masks), axis=0) * valid


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


# ---- for compiled models ---------------------------------------------------------------------------


class Loss(keras.losses.Loss):
    """The loss `name` of `losses`, of logits (N, K, *S) if `channels_first`, else (N, *S, K).

    `sum_devices` returns the sum of a count over all devices. `weights` are those of the classes.
    """

    def __init__(
        self,
        name: str,
        channels_first: bool,
        sum_devices: Callable[[Any], Any],
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(reduction="sum", name=name)   # each device divides by the count over all devices
        self.channels_first, self.sum_devices, self.class_weights = channels_first, sum_devices, weights

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of masks y_true (N, *S) and logits y_pred, a float32 scalar."""
        logits = to_channels_last(y_pred, self.channels_first)
        return loss(self.name, logits, y_true, self.sum_devices, self.class_weights)


class LossTerms(keras.metrics.Metric):
    """The sums of the terms of the loss `name` and the numbers to divide them by, float32 (T, 2), if `is_enabled`.

    Arguments and shapes are those of `Loss`.
    """

    def __init__(self, name: str, channels_first: bool, weights: Sequence[float] | None = None) -> None:
        super().__init__(name="terms", dtype="float32")
        self.loss_name, self.channels_first, self.class_weights, self.is_enabled = name, channels_first, weights, True
        self.sums = self.add_variable((len(SUMS.get(name, (name,))), 2), "zeros", dtype="float32", name="sums")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add the terms for masks y_true (N, *S) and logits y_pred to the sums."""
        if self.is_enabled:
            logits = to_channels_last(y_pred, self.channels_first)
            pairs = terms(self.loss_name, logits, y_true, self.class_weights)
            self.sums.assign(self.sums + ops.stack([ops.stack(pair) for pair in pairs]))

    def result(self) -> Any:
        """Return the sum of the numbers: Keras expects a number, but the trainer reads `sums`."""
        return ops.sum(self.sums)


def to_channels_last(y: Any, channels_first: bool) -> Any:
    """Return y with shape (N, *S, K). Its own shape is (N, K, *S) if `channels_first`, else (N, *S, K)."""
    return ops.moveaxis(y, 1, -1) if channels_first else y
