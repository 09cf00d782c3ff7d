"""Load a network from a file, and predict probabilities and classes.

The framework runs the network, `train.windows` blends the outputs of overlapping windows, and NumPy does the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import contract, portable, registry
from ..adapters import adapter, backend_of
from ..contract import Array
from ..files import open_regular
from ..ops import numpy as ops
from ..train.best import NAME as BEST
from ..train.preparation import Preparation, check_image
from ..train.state import DTYPES, SETTINGS
from ..train.windows import predict_windows

MAX_SETTINGS: Final = 2**20   # largest number of bytes of a settings file
MAX_SIZE: Final = 2**28       # largest number of pixels of a resized image, if the size is from a settings file


@dataclass(frozen=True)
class Network:
    """A model, and the preparation (resizing and normalisation) of the images that it takes.

    Attributes:
        model: a PyTorch or Keras model, as `attzoo.load` returns it.
        preparation: the resizing and normalisation of an image before the forward pass.
        settings: the settings file of the training run from which the size or the normalisation was read; None if
            neither was.
        dtypes: the dtypes of the images that the model was trained on; empty if they are unknown.
        patch_size: the spatial size of the patches that the model was trained on, the default of the windows in which
            images are predicted; None if it was trained on whole images or this is unknown.
    """

    model: Any
    preparation: Preparation
    settings: Path | None = None
    dtypes: tuple[str, ...] = ()
    patch_size: tuple[int, ...] | None = None

    @property
    def spec(self) -> Any:
        """The spec of the model: its arguments and the shapes of its weights."""
        return self.model.spec

    def check_inputs(self, shape: Sequence[int], name: str) -> None:
        """Raise ValueError unless the network takes images of this shape.

        Args:
            shape: the shape of the image, (C, *S).
            name: the name of the image in the message, such as its path.
        """
        channels, dims = self.spec.in_channels, self.spec.spatial_dims
        if (shape[0], len(shape) - 1) != (channels, dims):
            got = f"{shape[0]} and {len(shape) - 1}"
            fix = f"convert the image to {channels} channel{'s' * (channels > 1)} (grey has 1, RGB 3, RGBA 4)"
            if len(shape) - 1 != dims:
                fix = f"use a network with {len(shape) - 1} spatial axes, or save a picture (H, W, C) as PNG or TIFF"
            raise ValueError(f"expected {channels} channels and {dims} spatial axes in {name}, got {got}: {fix}")

    def check_scale(self, dtype: np.dtype[Any], name: str) -> None:
        """Raise ValueError if images of this dtype have another range of values than the training images.

        Args:
            dtype: the dtype of the image.
            name: the name of the image in the message, such as its path.
        """
        scale, trained_dtypes = self.preparation.scale, " and ".join(self.dtypes)
        if self.dtypes and scale(dtype) not in {scale(np.dtype(dtype_name)) for dtype_name in self.dtypes}:
            reason = f"as the training images, because --normalise is {self.preparation.normalise}"
            fix = f"convert the image to {self.dtypes[0]}"
            raise ValueError(f"expected {name} to have values as {trained_dtypes}, {reason}, got {dtype}: {fix}")

    def __call__(self, x: Array) -> Array:
        """Return the model's outputs (N, K, *S) for prepared images (N, C, *S): logits, or as its head defines."""
        return adapter(backend_of(self.model)).forward(self.model, [x], training=False)


def open_network(
    path: str | Path, *, backend: str = "torch", size: Sequence[int] | None = None, normalise: str | None = None
) -> Network:
    """Load a network that `attzoo.save` or `attzoo train` wrote; return it, on a GPU if the framework has one.

    The defaults of `size` and `normalise`, the spacing and the size of patches are read from settings.json in the
    folder of the file, unless `size` and `normalise` are given. Without that file, images are not resized, have the
    default normalisation of `Preparation`, which may differ from the training's, and are predicted as a whole.

    Args:
        path: the file.
        backend: "torch" or "keras".
        size: the spatial size that images are resized to; empty for no resizing, nor resampling to a spacing.
        normalise: "zscore", "unit" or "none", as in `Preparation`.

    Raises:
        IsADirectoryError: if the path is a folder.
        ValueError: if the file has no network, if settings or options are invalid, or as `attzoo.load`.
    """
    path = Path(path)
    if path.is_dir():
        fix = f"give a file of weights, such as {path / BEST}"
        raise IsADirectoryError(f"expected a file with a network, got the folder {path}: {fix}")
    model = portable.load(path, backend=backend)
    if (name := registry.name_of(model.spec)) not in registry.NETWORKS:
        fix = "give a file of a U-Net, as attzoo train writes it; attzoo.load reads files of blocks"
        raise ValueError(f"expected a file with a network, got the block {name} in {path}: {fix}")
    settings_path = path.parent / SETTINGS
    settings = settings_path if (size is None or normalise is None) and settings_path.exists() else None
    dims = model.spec.spatial_dims
    trained = _read_settings(settings, dims) if settings else _Trained(Preparation())
    preparation = replace(trained.preparation, normalise=normalise or trained.preparation.normalise)
    if size is not None:
        preparation = replace(preparation, size=_check_size(size, dims), spacing=None)
    dtypes = trained.dtypes if preparation.normalise == trained.preparation.normalise else ()
    return Network(adapter(backend).place(model), preparation, settings, dtypes, trained.patch_size)


@dataclass(frozen=True)
class _Trained:
    """The images that a network was trained on.

    Attributes:
        preparation: their resizing and normalisation.
        dtypes: the names of their dtypes.
        patch_size: the spatial size of the patches of the images; None for whole images.
    """

    preparation: Preparation
    dtypes: tuple[str, ...] = ()
    patch_size: tuple[int, ...] | None = None


def _check_size(size: Sequence[int] | None, dims: int, name: str = "size") -> tuple[int, ...] | None:
    """Return a spatial size as a tuple, or None if `size` is None or empty. `name` is its name in errors.

    Raises:
        TypeError: if the size is not a sequence of integers.
        ValueError: if a number is less than 1, or the size has not one number for each of `dims` spatial axes.
    """
    size = None if size is None else contract.integers(name, size)
    if size and len(size) != dims:
        raise ValueError(f"{name} must be {dims} numbers, one per spatial axis, got {contract.short_repr(size)}")
    return size or None


def _read_settings(path: Path, dims: int) -> _Trained:
    """Read a settings file of a training run, and return what it says about the images.

    Args:
        path: the file.
        dims: the number of spatial axes of the network.

    Raises:
        ValueError: if the content is invalid. The message names the file.
        OSError: if the file cannot be opened.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_SETTINGS + 1)
        if len(content) > MAX_SETTINGS:
            raise ValueError(f"got more than {MAX_SETTINGS} bytes")
        return _parse_settings(json.loads(content), dims)
    except (ValueError, TypeError, RecursionError) as err:
        got = contract.shorten(str(err))
        fix = "correct or remove this file, and set --size and --normalise"
        raise ValueError(f"expected the settings of a training run in {path}, or no such file: {got}; {fix}") from err


def _parse_settings(settings: Any, dims: int) -> _Trained:
    """Return what a settings file says about the images, from its decoded JSON.

    Args:
        settings: the decoded JSON.
        dims: the number of spatial axes of the network.

    Raises:
        TypeError: if the JSON, or a value in it, has another type.
        ValueError: if a name is missing or a value is invalid. The messages do not name the file.
    """
    if not isinstance(settings, Mapping):
        raise TypeError(f"got {str(settings)[:100]}")
    if missing := [name for name in ("backend", "size", "normalise") if name not in settings]:
        raise ValueError(f"got no {', '.join(missing)}")
    sizes = {name: settings.get(name) for name in ("size", "patch_size")}
    sizes = {name: _check_size(size if size is None else tuple(size), dims, name) for name, size in sizes.items()}
    normalise = settings["normalise"]
    for name, size in sizes.items():
        if prod(size or ()) > MAX_SIZE:
            raise ValueError(f"{name} must be at most {MAX_SIZE} pixels in all, got {contract.short_repr(size)}")
    spacing = settings.get("spacing")
    if spacing is not None and len(spacing) != dims:
        raise ValueError(f"spacing must be {dims} numbers, one per spatial axis, got {contract.short_repr(spacing)}")
    normalise = Preparation.normalise if normalise is None else normalise
    channel_files = contract.flag("channel_files", settings.get("channel_files", False))
    preparation = Preparation(sizes["size"], normalise, spacing, channel_files)
    dtypes = tuple(np.dtype(str(name)).name for name in settings.get(DTYPES, ()))
    return _Trained(preparation, dtypes, sizes["patch_size"])


# ---- predictions -----------------------------------------------------------------------------------


def predict(
    network: Network,
    image: NDArray[Any],
    *,
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    batch: int | None = None,
    spacing: Sequence[float] = (),
) -> Array:
    """Return the probability of each class in each pixel of an image, (K, *S).

    Args:
        network: the network, from `open_network`.
        image: (C, *S), as read from a file; it is resized and normalised here.
        window: the spatial size of a window, in pixels of the resized image. Larger images are predicted in
            overlapping windows, which are blended with Gaussian weights. None means the size of the patches in
            training, to which smaller images are padded; a network that was trained on whole images predicts the whole
            image at once, and so does an empty size.
        overlap: the fraction of a window that the next one overlaps, in [0, 1). Default: 0.5. Only with `window`.
        batch: the number of windows in a batch, >= 1. Default: 4. Only with `window`.
        spacing: the distance between the voxels along each axis, in millimetres. Only for a network whose preparation
            resamples to a spacing.

    Returns:
        (K, *S), the probabilities. For K = 1 those of class 1.

    Raises:
        TypeError: if an option has another type, or the image is not an array of real numbers.
        ValueError: if the network does not take the image, if values of the image are masked, if an option is invalid
            or has no effect, or if the outputs of the network are not finite.
    """
    logits = _outputs(network, image, window, overlap, batch, spacing)
    if network.spec.head == "sigmoid":   # the network has already applied the sigmoid
        return logits
    return ops.sigmoid(logits) if len(logits) == 1 else _softmax(logits)


def segment(
    network: Network,
    image: NDArray[Any],
    *,
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    batch: int | None = None,
    spacing: Sequence[float] = (),
) -> NDArray[Any]:
    """Return the class of each pixel of an image, (*S).

    The result is that of `label(predict(...))`, computed in less memory. Arguments and errors are those of `predict`.
    """
    outputs = _outputs(network, image, window, overlap, batch, spacing)
    return label(outputs, 0.5 if network.spec.head == "sigmoid" else 0.0)


def label(scores: Array, threshold: float = 0.5) -> NDArray[Any]:
    """Return the class of each pixel, (*S): the index of the largest score, the smallest index among equal scores.

    Args:
        scores: (K, *S), probabilities or logits of the classes.
        threshold: for K = 1, the smallest score of class 1: 0.5 for probabilities, 0 for logits.

    Returns:
        (*S), uint8 for at most 256 classes, else uint16.
    """
    dtype = np.uint8 if len(scores) <= 256 else np.uint16
    if len(scores) == 1:
        return np.asarray(scores[0] >= threshold, dtype)
    highest_scores, classes = scores[0].copy(), np.zeros(scores.shape[1:], dtype)
    for k in range(1, len(scores)):   # argmax(0) would copy all scores and return int64
        classes[scores[k] > highest_scores] = k
        np.maximum(highest_scores, scores[k], out=highest_scores)
    return classes


def _outputs(
    network: Network,
    image: NDArray[Any],
    window: Sequence[int] | None,
    overlap: float | None,
    batch: int | None,
    spacing: Sequence[float],
) -> Array:
    """Return the network's outputs for an image (C, *S), resized to the size of the image, (K, *S).

    Arguments and errors are those of `predict`.
    """
    check_image(image)
    network.check_inputs(image.shape, "the image")
    window, overlap, batch = check_options(network, window, overlap, batch)
    x = network.preparation(image, spacing)[None]
    if network.patch_size is None:   # else smaller images are padded, as in training
        window = tuple(min(sides) for sides in zip(window or x.shape[2:], x.shape[2:], strict=True))
    is_whole = window is None or window == x.shape[2:]
    y = network(x) if is_whole else predict_windows(network, x, window or (), overlap, batch)
    if not np.isfinite(y).all():
        fix = "check the image for extreme values, or train again with a lower --rate if the training diverged"
        raise ValueError(f"expected finite outputs of the network, got NaN or infinity: {fix}")
    if y.shape[2:] == image.shape[1:]:
        return np.asarray(y[0])
    resized = np.empty((y.shape[1], *image.shape[1:]), y.dtype)
    for k in range(len(resized)):   # one channel at a time: resizing needs several times the memory of its input
        resized[k] = ops.resize(y[:, k : k + 1], image.shape[1:], "linear", align_corners=False)[0, 0]
    return resized


def check_options(
    network: Network, window: Sequence[int] | None, overlap: float | None, batch: int | None
) -> tuple[tuple[int, ...] | None, float, int]:
    """Check the options of `predict` for a network; return window, overlap and batch, with defaults in place of None.

    The window None stands for the whole image.

    Raises:
        TypeError: if an option has another type.
        ValueError: if an option is invalid, or has no effect.
    """
    dims, size = network.spec.spatial_dims, network.preparation.size
    is_default, is_whole = window is None, isinstance(window, (tuple, list)) and not window
    window = None if is_whole else network.patch_size if is_default else window
    for name, value in {"overlap": overlap, "batch": batch}.items():
        if window is None and value is not None:
            fix = f"set window too, or leave {name} out"
            raise ValueError(f"{name} needs a window, got {value} without a window: {fix}")
    batch = contract.integer("batch", 4 if batch is None else batch)
    overlap = contract.number("overlap", 0.5 if overlap is None else overlap)
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
    if window is None:
        return None, overlap, batch
    window = contract.integers("window", window)
    if len(window) != dims:
        raise ValueError(f"window must be {dims} numbers, one per spatial axis, got {window}")
    if size and not is_default and all(w >= s for w, s in zip(window, size, strict=True)):
        fix = "give a smaller window, or leave it out"
        raise ValueError(f"window must be less than {size}, which images are resized to, got {window}: {fix}")
    return window, overlap, batch


def _softmax(logits: Array) -> Array:
    """Return the softmax of logits (K, *S) over classes, (K, *S). Only one array of this size is allocated."""
    z: Array = logits - logits.max(axis=0)
    np.exp(z, out=z)
    z /= z.sum(axis=0)
    return z
