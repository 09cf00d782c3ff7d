"""The losses in PyTorch: logits (N, K, *S), masks (N, *S)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ALPHA, BETA, GAMMA, IGNORE, SMALLEST, SUMS, TINY, WEIGHTED

Term = tuple[Tensor, Tensor]   # a sum, and the number to divide it by


def loss(
    name: str,
    logits: Tensor,
    masks: Tensor,
    sum_devices: Callable[[Tensor], Tensor] = lambda count: count,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss `name`, a key of LOSSES or SUMS, of logits (N, K, *S) and masks (N, *S), as a float32 scalar.

    `sum_devices` returns the sum of a count over all devices that share the batch. `weights` has a weight for each
    class, float32, for the losses WEIGHTED.
    """
    quotients = [total / sum_devices(count).clamp(min=TINY) for total, count in terms(name, logits, masks, weights)]
    return torch.stack(quotients).sum()


def terms(name: str, logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> list[Term]:
    """Return the terms of the loss `name`, of which `loss` is the sum of quotients. Arguments as `loss`."""
    names = SUMS.get(name, (name,))
    return [LOSSES[part](logits.float(), masks, *((weights,) if part in WEIGHTED else ())) for part in names]


def terms_of_large_images(name: str, logits: Tensor, masks: Tensor, weights: Tensor | None, pixels: int) -> list[Term]:
    """Return `terms`, computed for slabs of about `pixels` pixels along the first spatial axis to save memory."""
    rows = max(1, pixels // masks[:, 0].numel())
    slabs = [(y.float(), t) for y, t in zip(logits.split(rows, 2), masks.split(rows, 1), strict=True)]
    result: list[Term] = []
    for part in SUMS.get(name, (name,)):
        if part in OF_IMAGES:
            overlaps = [sum(counts) for counts in zip(*(_overlaps(y, t) for y, t in slabs), strict=True)]
            result.append(_mean_classes(OF_IMAGES[part](*overlaps), masks))
        else:
            totals, counts = zip(*(LOSSES[part](y, t, weights) for y, t in slabs), strict=True)
            result.append((sum(totals), sum(counts)))
    return result


def cross_entropy(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Term:
    """Return (cross-entropy summed over pixels, number of pixels). Pixels of IGNORE are left out."""
    total = F.cross_entropy(logits, masks, weights, ignore_index=IGNORE, reduction="sum")
    return total, _pixel_weights(masks, weights).sum()


def bce(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Term:
    """Return (binary cross-entropy summed over pixels and outputs, number of pixels times outputs)."""
    pixel_weights = _pixel_weights(masks, weights)[:, None]
    losses = F.binary_cross_entropy_with_logits(logits, _targets(masks, logits.shape[1])[0], reduction="none")
    return (losses * pixel_weights).sum(), pixel_weights.sum() * logits.shape[1]


def dice(logits: Tensor, masks: Tensor) -> Term:
    """Return (Dice loss summed over images, number of images with pixels that are not IGNORE)."""
    return _mean_classes(_dice(*_overlaps(logits, masks)), masks)


def focal_tversky(logits: Tensor, masks: Tensor) -> Term:
    """Return (focal Tversky loss summed over images, number of images with pixels that are not IGNORE)."""
    return _mean_classes(_focal_tversky(*_overlaps(logits, masks)), masks)


def _dice(true_positives: Tensor, false_negatives: Tensor, false_positives: Tensor) -> Tensor:
    """Return the Dice loss of each image and class, (N, K), from what `_overlaps` returns."""
    errors = false_negatives + false_positives
    return errors / (2 * true_positives + errors + 1)


def _focal_tversky(true_positives: Tensor, false_negatives: Tensor, false_positives: Tensor) -> Tensor:
    """Return the focal Tversky loss of each image and class, (N, K), from what `_overlaps` returns."""
    errors = ALPHA * false_negatives + BETA * false_positives
    return (errors / (true_positives + errors + 1)).clamp(min=SMALLEST) ** (1 / GAMMA)


LOSSES: dict[str, Callable[..., Term]] = {loss.__name__: loss for loss in (cross_entropy, bce, dice, focal_tversky)}
OF_IMAGES = {"dice": _dice, "focal_tversky": _focal_tversky}   # the other losses are sums over pixels


def _pixel_weights(masks: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weight of the class of each pixel, or 1 without weights, and 0 for pixels of IGNORE: (N, *S)."""
    valid = masks != IGNORE
    return valid.float() if weights is None else torch.where(valid, weights[masks.where(valid, 0)], 0)


def _targets(masks: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Return one-hot masks (N, K, *S), or (N, 1, *S) for one output; and 1 for pixels not IGNORE, else 0 (N, 1, *S)."""
    valid = (masks != IGNORE)[:, None]
    classes = torch.arange(outputs, device=masks.device) if outputs > 1 else torch.ones(1, device=masks.device)
    targets = masks[:, None] == classes.view(-1, *(1,) * (masks.ndim - 1))
    return targets.float(), valid.float()


def _overlaps(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums over pixels p t, (1 - p) t and p (1 - t), shape (N, K) each.

    p is softmax(logits), t the one-hot mask. Pixels of IGNORE are left out.
    """
    probabilities = logits.softmax(1)
    targets, valid = _targets(masks, logits.shape[1])
    probabilities, targets = (probabilities * valid).flatten(2), targets.flatten(2)
    true_positives = (probabilities * targets).sum(2)
    return true_positives, targets.sum(2) - true_positives, probabilities.sum(2) - true_positives


def _mean_classes(losses: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over images of the mean of losses (N, K) over classes, and the number of images.

    Images in which every pixel is IGNORE are left out.
    """
    has_pixels = (masks != IGNORE).flatten(1).any(1)
    return (losses.mean(1) * has_pixels).sum(), has_pixels.sum()
