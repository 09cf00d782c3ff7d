"""Helpers for figures: colours, sizes, conversion of arrays to displayable images, and PNG output."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from io import BytesIO
from math import floor, log10
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .contract import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Cut = tuple[int, int] | None   # spatial axis of a slice through a volume, and its index; None for no volume

COLORS: Final = {"torch": "#3b6fb6", "keras": "#c4532f"}   # colour of headings and bars, by framework
GREY: Final = "#555555"     # colour of notes and ticks
MARGIN: Final = 0.15        # inches, around the figure
DPI: Final = 100            # pixels per inch
NEUTRAL: Final = 0.5        # sigmoid(0), the base of bars
OPAQUE: Final = 0.55        # opacity of the colours of classes over an image


def middle_slice(shape: Sequence[int]) -> Cut:
    """Return the axis and the index of the middle slice along a volume's shortest axis; None for an image or signal.

    Args:
        shape: the spatial size, with one to three axes.
    """
    if len(shape) < 3:
        return None
    axis = int(np.argmin(shape))
    return axis, shape[axis] // 2


def take_slice(x: Array, cut: Cut, sizes: Sequence[int] = ()) -> Array:
    """Return an image (C, H, W) from an array (C, *S): a slice of a volume, an image itself, or a signal as one row.

    Args:
        x: (C, *S), with 1 to 3 spatial axes.
        cut: the axis and the index of the slice of a volume; None for an image or signal.
        sizes: the spatial size for which `cut` has its index, if x has another size; by default that of x.

    """
    if cut is None:
        return x if x.ndim == 3 else x[:, None]
    axis, index = cut
    size = x.shape[1 + axis]
    return np.asarray(x.take((2 * index + 1) * size // (2 * (sizes[axis] if sizes else size)), axis=1 + axis))


def to_rgb(x: Array) -> Array:
    """Return an image (C, H, W) as RGB (H, W, 3) in [0, 1], for display.

    Values between the 0.5th and 99.5th percentile are scaled to [0, 1], others are clipped. Unless C is 3, the result
    is grey, the mean over channels.
    """
    color = x.astype(np.float64) if len(x) == 3 else x.mean(0, np.float64, keepdims=True).repeat(3, axis=0)
    finite = color[np.isfinite(color)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    scaled = (color - low) / (high - low if high > low else 1.0)
    return np.moveaxis(np.clip(np.nan_to_num(scaled), 0, 1), 0, -1)


def overlay_classes(image: Array, mask: NDArray[Any], colors: NDArray[Any]) -> Array:
    """Return an image in grey, with the colour of each pixel's class over it, as RGB (H, W, 3) in [0, 1].

    Args:
        image: (C, H, W), the image.
        mask: (H, W), the class indices; class 0 is not coloured.
        colors: (K, 3), the colour of each class in [0, 1].
    """
    grey = to_rgb(image.mean(axis=0, keepdims=True))
    return np.where(mask[..., None] > 0, (1 - OPAQUE) * grey + OPAQUE * colors[mask], grey)


def size_text(sizes: Sequence[int]) -> str:
    """Return a spatial size as text, such as "64 x 48"."""
    return " x ".join(map(str, sizes))


def slice_text(sizes: Sequence[int], cut: Cut) -> str:
    """Return the description of a slice, such as "slice 5 of 9 along axis 1"; "" if `cut` is None.

    Args:
        sizes: the spatial size of the volume.
        cut: the axis and the index of the slice.
    """
    return f"slice {cut[1] + 1} of {sizes[cut[0]]} along axis {cut[0] + 1}" if cut else ""


def escape_text(name: str) -> str:
    r"""Return a name as text for matplotlib, with $ escaped and bytes that are not UTF-8 replaced.

    >>> print(escape_text("a$b$.png"))
    a\$b\$.png
    """
    return os.fsencode(name).decode("utf-8", "replace").replace("$", r"\$")


def tick_labels(*values: float) -> list[str]:
    """Return a tick label for each value, with two to four decimals, so that the smallest and the largest differ."""
    spread = max(values) - min(values)
    return [f"{value:.{min(max(2, 1 - floor(log10(spread))), 4) if spread else 2}f}" for value in values]


def remove_ticks(ax: Axes, color: str | None = None) -> None:
    """Remove the ticks of axes, and their frame; with `color`, draw the frame in this colour instead."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=color is not None, color=color)


def style_ticks(ax: Axes) -> None:
    """Make the ticks of axes and their labels small and grey."""
    ax.tick_params(labelsize=8.5, length=2, color=GREY, labelcolor=GREY)


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """Return a figure as the bytes of a PNG with `dpi` pixels per inch."""
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")   # characters without a glyph are drawn as boxes
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()
