"""Sliding windows: predictions for images of any size in the memory of one window. MONAI blends the windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import contract
from ..contract import Array
from ..data import IGNORE, package

OVERLAP: Final = 0.25   # in validation, MONAI's default; a larger overlap needs more windows
CHUNK: Final = 2**20   # the number of pixels that are counted in one step, or whose losses are computed


def predict_windows(
    forward: Callable[[Array], Array], x: Array, window: Sequence[int], overlap: float, batch: int
) -> Array:
    """Return the outputs (N, K, *S) of a network for images x (N, C, *S), blended from overlapping windows.

    A pixel's output is the mean of the outputs of all windows with this pixel, with Gaussian weights, which are largest
    at the center of a window. Images that are smaller than the window are padded with 0 on both sides, and their
    outputs are cropped.

    Args:
        forward: returns the outputs of the network for windows (N, C, *window), also (N, K, *window).
        x: the images.
        window: the spatial size of a window.
        overlap: the fraction of a window that the next one overlaps, in [0, 1).
        batch: the number of windows that are computed at once.
    """
    contract.triton_first()   # MONAI may import TensorFlow
    torch, inferers = package("torch"), package("monai.inferers")
    y = inferers.sliding_window_inference(
        torch.from_numpy(x),
        window,
        batch,
        lambda windows: torch.from_numpy(forward(windows.numpy())),
        overlap=overlap,
        mode="gaussian",
    )
    return np.asarray(y)


def evaluate(trainer: Any, window: Sequence[int], batch: int, images: Any, masks: Any) -> None:
    """Add the predictions of a trainer in sliding windows, and their loss, to its validation.

    Args:
        trainer: the trainer, of either framework.
        window: the spatial size of a window.
        batch: the number of windows that are computed at once.
        images: (N, C, *S), arrays or CPU tensors of any spatial size.
        masks: the class indices, (N, *S).
    """
    for image, mask in zip(np.asarray(images), np.asarray(masks), strict=True):
        logits = predict_windows(trainer.logits, image[None], window, OVERLAP, batch)
        counts = confusion(logits[0], mask, len(trainer.confusion))
        trainer.validation.add(counts[None], _loss_terms(trainer, logits, mask[None]))


def _loss_terms(trainer: Any, logits: Array, masks: NDArray[Any]) -> NDArray[np.float64]:
    """Return the terms (T, 2) of a trainer's loss for logits (N, K, *S) and class indices (N, *S).

    PyTorch computes them, for Keras too: MONAI, which `predict_windows` needs, requires it.
    """
    torch, losses = package("torch"), import_module(f"{__package__}.losses.torch")
    weights = None if trainer.class_weights is None else torch.tensor(trainer.class_weights)
    y, t = torch.from_numpy(logits), torch.from_numpy(masks.astype(np.int64, copy=False))
    pairs = losses.terms_of_large_images(trainer.settings.loss, y, t, weights, CHUNK)
    return np.array([[float(total), float(count)] for total, count in pairs])


def confusion(logits: Array, mask: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Return the number of pixels by true class (rows) and predicted class (columns), int64 (classes, classes).

    Args:
        logits: (K, *S). A single output predicts class 1 where it is 0 or more, as in `predict`.
        mask: the true classes, (*S). Pixels of 255 are not counted.
        classes: the number of classes.
    """
    counts = np.zeros(classes**2, np.int64)
    step = max(1, CHUNK // mask[0].size)   # all pixels at once would need several int64 numbers for each
    for start in range(0, len(mask), step):
        y, z = mask[start : start + step].astype(np.int64), logits[:, start : start + step]
        predictions = z.argmax(axis=0) if len(z) > 1 else z[0] >= 0
        counts += np.bincount((y * classes + predictions)[y != IGNORE], minlength=classes**2)
    return counts.reshape(classes, classes)
