"""Classes over an image, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import look
from ..look import GREY, MARGIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL: Final = 3.4      # inches, the width of a panel
GAP: Final = 0.15       # inches, between panels
TOP: Final = 0.58       # inches, for the title and what stands over the panels
LINE: Final = 0.24      # inches, for a line of the legend
ENTRY: Final = 1.4      # inches, for an entry of it


def draw(image: NDArray[Any], mask: NDArray[Any], title: str, spacing: Sequence[float] = ()) -> bytes:
    """A PNG of an image (C, *S) and its classes (*S): the image and both together; of a volume its middle slices.

    spacing: between pixels, one for each axis, which they are drawn to; none for squares and cubes.
    Class 0 is left as it is; the legend has every class that is there, and its share of the pixels.
    """
    from matplotlib.figure import Figure

    shares = np.bincount(mask.reshape(-1)) / mask.size
    colors = palette(len(shares))
    panels = _panels(image, mask, colors, tuple(spacing[: mask.ndim]) or (1.0,) * mask.ndim)
    talls = [PANEL * min(max(panel.ratio, 0.2), 1.6) for panel in panels]
    width = 2 * MARGIN + len(panels) * (PANEL + GAP) - GAP
    columns = int((width - 2 * MARGIN) / ENTRY)
    classes = np.flatnonzero(shares)
    foot = GAP + LINE * ceil(len(classes) / columns)
    height = 2 * MARGIN + TOP + max(talls) + foot
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(MARGIN / width, 1 - MARGIN / height, look.literal(title), fontsize=12, weight="bold", va="top")
    for i, (panel, tall) in enumerate(zip(panels, talls, strict=True)):
        left, low = MARGIN + i * (PANEL + GAP), height - MARGIN - TOP - tall
        ax = figure.add_axes((left / width, low / height, PANEL / width, tall / height))
        ax.imshow(panel.pixels, aspect=panel.aspect, interpolation="nearest")   # smaller where it exceeds the bounds
        ax.set_title(panel.about, loc="left", fontsize=8.5, color=GREY, pad=3)
        look.bare(ax)
    for i, k in enumerate(classes):
        left, low = MARGIN + i % columns * ENTRY, MARGIN + foot - GAP - LINE * (i // columns + 1)
        _entry(figure, left, low, tuple(colors[k]) if k else "white", f"class {k}: {shares[k]:.1%}")
    return look.png(figure, dpi=150)


def palette(count: int) -> NDArray[Any]:
    """(count, 3): a colour for each class, told apart as well as can be with so many."""
    from matplotlib import colormaps

    few = "tab10" if count <= 11 else "tab20"   # class 0 has none
    if count <= 21:
        return np.array([colormaps[few](k % colormaps[few].N)[:3] for k in range(count)])
    return np.array([colormaps["turbo"](k / (count - 1))[:3] for k in range(count)])


@dataclass(frozen=True)
class _Panel:
    """A picture: what it is, its pixels (H, W, 3), and a pixel's height as a multiple of its width."""

    about: str
    pixels: NDArray[Any]
    aspect: float

    @property
    def ratio(self) -> float:
        """Height to width."""
        high, wide, _ = self.pixels.shape
        return float(self.aspect * high / wide)

    def lying(self) -> _Panel:
        """The same, turned where it is higher than wide."""
        return _Panel(self.about, self.pixels.swapaxes(0, 1), 1 / self.aspect) if self.ratio > 1 else self


def _panels(
    image: NDArray[Any], mask: NDArray[Any], colors: NDArray[Any], spacing: tuple[float, ...]
) -> list[_Panel]:
    """What to show: a picture twice, or a volume's middle slice along each axis."""
    space = mask.shape
    if len(space) == 2:
        aspect = spacing[0] / spacing[1]
        tinted = look.tinted(image, mask, colors)
        return [_Panel(look.sizes(space), look.visible(image), aspect), _Panel("classes", tinted, aspect)]
    panels = []
    for cut in ((axis, size // 2) for axis, size in enumerate(space)):
        tinted = look.tinted(look.flat(image, cut), look.flat(mask[None], cut)[0], colors)
        high, wide = (side for axis, side in enumerate(spacing) if axis != cut[0])
        panels.append(_Panel(look.told(space, cut), tinted, high / wide).lying())
    return panels


def _entry(figure: Figure, left: float, low: float, color: Any, text: str) -> None:
    """A line of the legend, its place in inches."""
    from matplotlib.patches import Rectangle

    width, height = figure.get_size_inches()
    side = 0.13   # inches
    place = left / width, (low + (LINE - side) / 2) / height
    figure.add_artist(Rectangle(place, side / width, side / height, facecolor=color, edgecolor=GREY, linewidth=0.5))
    figure.text((left + 0.2) / width, (low + LINE / 2) / height, text, fontsize=8.5, color=GREY, va="center")
