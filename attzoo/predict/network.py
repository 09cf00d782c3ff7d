"""A network from a file, and from an image its probabilities and classes. No framework here but MONAI's windows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import contract, portable, registry
from ..adapters import adapter, backend_of
from ..contract import Array
from ..data import package
from ..files import open_regular
from ..ops import numpy as ops
from ..train.data import Preparation
from ..train.state import DTYPES, SETTINGS

MAX_SETTINGS: Final = 2**20         # bytes
MAX_SIZE: Final = 2**28             # pixels that they may resize an image to


@dataclass(frozen=True)
class Network:
    """model: of either framework, as `attzoo.load` gives it. preparation: of an image before the model sees it.

    settings: the file beside the model that the preparation, or a part of it, is from; None for no such file.
    dtypes: of the images that the model was trained on so; none where that is not known.
    """

    model: Any
    preparation: Preparation
    settings: Path | None = None
    dtypes: tuple[str, ...] = ()

    @property
    def spec(self) -> Any:
        """The model's."""
        return self.model.spec

    def check_inputs(self, shape: Sequence[int], what: str) -> None:
        """Raise ValueError, naming `what`, unless an image (C, *S) of this shape is one for the network."""
        channels, dims = self.spec.in_channels, self.spec.spatial_dims
        if (shape[0], len(shape) - 1) != (channels, dims):
            got = f"{shape[0]} and {len(shape) - 1}"
            fix = f"convert it to {channels} channel{'s' * (channels > 1)} (grey has 1, RGB 3, RGBA 4)"
            if len(shape) - 1 != dims:
                fix = f"take a network of {len(shape) - 1} spatial axes, or save a picture (H, W, C) as PNG or TIFF"
            raise ValueError(f"expected {channels} channels and {dims} spatial axes in {what}, got {got}: {fix}")

    def accept_scale(self, dtype: np.dtype[Any], what: str) -> None:
        """Raise ValueError, naming `what`, where a file's numbers come out on another scale than those of training."""
        scale, trained = self.preparation.scale, " and ".join(self.dtypes)
        if self.dtypes and scale(dtype) not in {scale(np.dtype(name)) for name in self.dtypes}:
            why = f"which the network was trained on, for --normalise {self.preparation.normalise}"
            raise ValueError(f"expected {what} on the scale of {trained}, {why}, got {dtype}: convert it to {trained}")

    def __call__(self, x: Array) -> Array:
        """(N, C, *S), prepared -> (N, K, *S), as the model's head gives it."""
        return adapter(backend_of(self.model)).forward(self.model, [x], training=False)


def open_network(
    path: str | Path, *, backend: str = "torch", size: Sequence[int] | None = None, normalise: str | None = None
) -> Network:
    """The network in a file of `attzoo.save`, on a GPU where its framework has one.

    size: the spatial size that images are resized to, empty for their own. normalise: as `Preparation`. None takes
    what the settings beside the file say, and where there are none, images' own size and Preparation's default, which
    need not be what it was trained with.
    Raises ValueError for a file of anything else, for settings or options that do not fit, and as `attzoo.load`.
    """
    path = Path(path)
    model = portable.load(path, backend=backend)
    if (name := registry.name_of(model.spec)) not in registry.NETWORKS:
        raise ValueError(f"expected a file with a network, got the block {name} in {path}")
    beside = path.parent / SETTINGS
    settings = beside if (size is None or normalise is None) and beside.exists() else None
    dims = model.spec.spatial_dims
    found, dtypes = _settings(settings, dims) if settings else (Preparation(), ())
    size = found.size if size is None else _size(size, dims)
    preparation = Preparation(size, normalise or found.normalise)
    is_known = preparation.normalise == found.normalise
    return Network(adapter(backend).place(model), preparation, settings, dtypes if is_known else ())


def _size(size: Sequence[int] | None, dims: int) -> tuple[int, ...] | None:
    """A size to resize to; none at all for an empty one."""
    if size and len(size) != dims:
        raise ValueError(f"size must be {dims} numbers, one per spatial axis, got {contract.shown(tuple(size))}")
    return tuple(size) if size else None


def _settings(path: Path, dims: int) -> tuple[Preparation, tuple[str, ...]]:
    """The preparation that training wrote down, for images of so many axes, and the dtypes of its images."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_SETTINGS + 1)
        if len(content) > MAX_SETTINGS:
            raise ValueError(f"got more than {MAX_SETTINGS} bytes")
        found = json.loads(content)
        if not isinstance(found, dict):
            raise TypeError(f"got {str(found)[:100]}")
        if missing := [name for name in ("backend", "size", "normalise") if name not in found]:   # another program's
            raise ValueError(f"got no {', '.join(missing)}")
        size = _size(None if found["size"] is None else tuple(found["size"]), dims)
        preparation = Preparation(size, Preparation.normalise if found["normalise"] is None else found["normalise"])
        if prod(size or ()) > MAX_SIZE:
            raise ValueError(f"size must be at most {MAX_SIZE} pixels in all, got {contract.shown(size)}")
        return preparation, tuple(np.dtype(str(name)).name for name in found.get(DTYPES, ()))
    except (ValueError, TypeError, RecursionError) as err:
        got = contract.brief(str(err))
        raise ValueError(f"expected the settings of a training in {path}, or no such file: {got}") from err


def predict(
    network: Network,
    image: NDArray[Any],
    *,
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    batch: int | None = None,
) -> Array:
    """(C, *S) as read from a file -> (K, *S), the probability of each class; of the second one, where K is 1.

    window: the spatial size of a part, in pixels, once the image is resized; a larger image goes by parts, which are
    blended with Gaussian weights. None: it goes whole. overlap, of windows: in [0, 1), the share of a part that its
    neighbour has too; None means 0.5. batch, of windows: >= 1 parts at once; None means 4.
    Raises ValueError for an image that is none for the network, for options outside these bounds or that would do
    nothing, or where the network gives numbers that are not finite.
    """
    y = _outputs(network, image, window, overlap, batch)
    if network.spec.head == "sigmoid":
        return y
    return ops.sigmoid(y) if len(y) == 1 else _softmax(y)


def segment(
    network: Network,
    image: NDArray[Any],
    *,
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    batch: int | None = None,
) -> NDArray[Any]:
    """(C, *S) -> (*S), the class of each pixel: as `label` of `predict`, in less memory. All else as `predict`."""
    y = _outputs(network, image, window, overlap, batch)
    return label(y, 0.5 if network.spec.head == "sigmoid" else 0.0)


def label(probabilities: Array, half: float = 0.5) -> NDArray[Any]:
    """(K, *S) -> (*S), the likeliest class in 8 bits, or 16 for more than 256; where K is 1, 1 from a half on.

    Logits will do as well, with `half` 0.
    """
    dtype = np.uint8 if len(probabilities) <= 256 else np.uint16
    if len(probabilities) == 1:
        return np.asarray(probabilities[0] >= half, dtype)
    best, classes = probabilities[0].copy(), np.zeros(probabilities.shape[1:], dtype)
    for k in range(1, len(probabilities)):   # argmax(0) would copy all of them, and answer in 64 bits
        classes[probabilities[k] > best] = k
        np.maximum(best, probabilities[k], out=best)
    return classes


def _outputs(
    network: Network, image: NDArray[Any], window: Sequence[int] | None, overlap: float | None, batch: int | None
) -> Array:
    """(C, *S) -> (K, *S), as the network's head gives it, resized."""
    network.check_inputs(image.shape, "the image")
    window, overlap, batch = check_options(network, window, overlap, batch)
    x = network.preparation(image)[None]
    part = [min(pair) for pair in zip(window or x.shape[2:], x.shape[2:], strict=True)]
    y = network(x) if part == list(x.shape[2:]) else _windows(network, x, part, overlap, batch)
    if not np.isfinite(y).all():
        raise ValueError("expected finite outputs of the network, got others")
    if y.shape[2:] == image.shape[1:]:
        return np.asarray(y[0])
    resized = np.empty((y.shape[1], *image.shape[1:]), y.dtype)
    for k in range(len(resized)):   # a channel at a time, as resizing takes several times what it is given
        resized[k] = ops.resize(y[:, k : k + 1], image.shape[1:], "linear", align_corners=False)[0, 0]
    return resized


def check_options(
    network: Network, window: Sequence[int] | None, overlap: float | None, batch: int | None
) -> tuple[tuple[int, ...] | None, float, int]:
    """The options, defaults settled, if they are right for a network. Raises TypeError or ValueError if not."""
    dims, size = network.spec.spatial_dims, network.preparation.size
    for name, value in {"overlap": overlap, "batch": batch}.items():
        if window is None and value is not None:
            raise ValueError(f"{name} is for windows, got {value} without a window")
    batch = contract.integer("batch", 4 if batch is None else batch)
    overlap = contract.number("overlap", 0.5 if overlap is None else overlap)
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
    if window is None:
        return None, overlap, batch
    if len(window) != dims:
        raise ValueError(f"window must be {dims} numbers, one per spatial axis, got {tuple(window)}")
    window = tuple(contract.integer("window", side) for side in window)
    if size and all(w >= s for w, s in zip(window, size, strict=True)):
        raise ValueError(f"window must be less than {size}, which images are resized to, got {window}")
    return window, overlap, batch


def _windows(network: Network, x: Array, part: Sequence[int], overlap: float, batch: int) -> Array:
    contract.triton_first()   # MONAI may bring TensorFlow
    torch, inferers = package("torch"), package("monai.inferers")
    y = inferers.sliding_window_inference(
        torch.from_numpy(x),
        part,
        batch,
        lambda parts: torch.from_numpy(network(parts.numpy())),
        overlap=overlap,
        mode="gaussian",
    )
    return np.asarray(y)


def _softmax(z: Array) -> Array:
    """Over the first axis, with one copy."""
    z = z - z.max(axis=0)
    np.exp(z, out=z)
    z /= z.sum(axis=0)
    return z
