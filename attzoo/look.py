"""What the pictures share: colours, sizes, an image made fit to be looked at, the way to PNG."""

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

    Cut = tuple[int, int] | None   # the axis that a volume is cut along, and the slice

COLORS: Final = {"torch": "#3b6fb6", "keras": "#c4532f"}   # of headings and bars
GREY: Final = "#555555"     # of what is said beside
MARGIN: Final = 0.15        # inches, around everything
DPI: Final = 100            # pixels per inch
NEUTRAL: Final = 0.5        # sigmoid(0), on which bars stand
OPAQUE: Final = 0.55        # of classes' colours over an image


def middle(space: Sequence[int]) -> Cut:
    """The cut through the middle of a volume's shortest axis; None for what is no volume."""
    if len(space) < 3:
        return None
    axis = int(np.argmin(space))
    return axis, space[axis] // 2


def flat(x: Array, cut: Cut, space: Sequence[int] = ()) -> Array:
    """(C, *S) -> (C, H, W): the cut through a volume; a line becomes a row. `space` is what the cut counts in."""
    if cut is None:
        return x if x.ndim == 3 else x[:, None]
    axis, at = cut
    have = x.shape[1 + axis]
    return np.asarray(x.take((2 * at + 1) * have // (2 * (space[axis] if space else have)), axis=1 + axis))


def visible(x: Array) -> Array:
    """(C, H, W) -> (H, W, 3) in [0, 1]: three channels as colours, others as grey, 0.5 % clipped at each end."""
    color = x if len(x) == 3 else np.repeat(x.mean(axis=0, keepdims=True, dtype=np.float64), 3, axis=0)
    finite = color[np.isfinite(color)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    scaled = (color - low) / (high - low if high > low else 1.0)
    return np.moveaxis(np.clip(np.nan_to_num(scaled), 0, 1), 0, -1)


def tinted(image: Array, mask: NDArray[Any], colors: NDArray[Any]) -> Array:
    """The image (C, H, W) in grey, (H, W, 3), with the colours (K, 3) of classes (H, W) over it, save class 0's."""
    grey = visible(image.mean(axis=0, keepdims=True))
    return np.where(mask[..., None] > 0, (1 - OPAQUE) * grey + OPAQUE * colors[mask], grey)


def sizes(space: Sequence[int]) -> str:
    """A size in words."""
    return " x ".join(map(str, space))


def told(space: Sequence[int], cut: Cut) -> str:
    """A cut in words; nothing for none."""
    return f"slice {cut[1] + 1} of {space[cut[0]]} along axis {cut[0] + 1}" if cut else ""


def literal(name: str) -> str:
    r"""A name of a file as text for matplotlib: no mathematics between $ signs, and characters instead of stray bytes.

    >>> print(literal("a$b$.png"))
    a\$b\$.png
    """
    return os.fsencode(name).decode("utf-8", "replace").replace("$", r"\$")


def numbers(*values: float) -> list[str]:
    """Values of a scale in words, with as many decimals as tell the ends apart, two to four."""
    reach = max(values) - min(values)
    return [f"{value:.{min(max(2, 1 - floor(log10(reach))), 4) if reach else 2}f}" for value in values]


def bare(ax: Axes, color: str | None = None) -> None:
    """Take an image's ticks, and its frame unless that has a color."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=color is not None, color=color)


def small(ax: Axes) -> None:
    """Make the ticks of a scale small and grey."""
    ax.tick_params(labelsize=8.5, length=2, color=GREY, labelcolor=GREY)


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """A figure as PNG."""
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")   # of a file's name, drawn as a box
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()
