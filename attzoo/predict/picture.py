"""Draw the class of each pixel as a colour over an image, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import plotting
from ..plotting import GREY, MARGIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Lengths are in inches.
PANEL: Final = 3.4   # width of a panel
GAP: Final = 0.15    # between panels
TOP: Final = 0.58    # height of the title and the headings of panels
LINE: Final = 0.24   # height of a row of the legend
ENTRY: Final = 1.4   # width of an entry of the legend
SIDE: Final = 0.13   # side of a colour patch in the legend


def draw(image: NDArray[Any], mask: NDArray[Any], title: str, spacing: Sequence[float] = ()) -> bytes:
    """Return a PNG of an image and its classes; for a volume, of the middle slice along each axis.

    Class 0 is not coloured. The legend has every class in the mask and its fraction of the pixels.

    Args:
        image: (C, *S), the image.
        mask: (*S), the class indices.
        title: the title of the figure.
        spacing: the distance between pixels along each axis, in any unit; empty for equal distances.

    Returns:
        The bytes of the PNG.
    """
    from matplotlib.figure import Figure

    fractions = np.bincount(mask.reshape(-1)) / mask.size
    colors = palette(len(fractions))
    panels = _panels(image, mask, colors, tuple(spacing[: mask.ndim]) or (1.0,) * mask.ndim)
    heights = [PANEL * min(max(panel.ratio, 0.2), 1.6) for panel in panels]
    width = 2 * MARGIN + len(panels) * (PANEL + GAP) - GAP
    columns = int((width - 2 * MARGIN) / ENTRY)
    classes = np.flatnonzero(fractions)
    legend = GAP + LINE * ceil(len(classes) / columns)
    height = 2 * MARGIN + TOP + max(heights) + legend
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(MARGIN / width, 1 - MARGIN / height, plotting.escape_text(title), fontsize=12, weight="bold", va="top")
    for i, (panel, panel_height) in enumerate(zip(panels, heights, strict=True)):
        left, bottom = MARGIN + i * (PANEL + GAP), height - MARGIN - TOP - panel_height
        ax = figure.add_axes((left / width, bottom / height, PANEL / width, panel_height / height))
        ax.imshow(panel.pixels, aspect=panel.aspect, interpolation="nearest")   # shrinks images of extreme ratios
        ax.set_title(panel.heading, loc="left", fontsize=8.5, color=GREY, pad=3)
        plotting.remove_ticks(ax)
    for i, k in enumerate(classes):
        left, bottom = MARGIN + i % columns * ENTRY, MARGIN + legend - GAP - LINE * (i // columns + 1)
        _draw_entry(figure, left, bottom, tuple(colors[k]) if k else "white", f"class {k}: {fractions[k]:.1%}")
    return plotting.png(figure, dpi=150)


def palette(count: int) -> NDArray[Any]:
    """Return a distinct RGB colour for each of `count` classes, (count, 3) in [0, 1]."""
    from matplotlib import colormaps

    name = "tab10" if count <= 11 else "tab20"   # one class more than colours, as class 0 is not coloured
    if count <= 21:
        return np.array([colormaps[name](k % colormaps[name].N)[:3] for k in range(count)])
    return np.array([colormaps["turbo"](k / (count - 1))[:3] for k in range(count)])


@dataclass(frozen=True)
class _Panel:
    """A picture in the figure.

    Attributes:
        heading: the text over it.
        pixels: (H, W, 3) in [0, 1].
        aspect: the height of a pixel divided by its width.
    """

    heading: str
    pixels: NDArray[Any]
    aspect: float

    @property
    def ratio(self) -> float:
        """The height of the picture divided by its width, as displayed."""
        rows, columns, _ = self.pixels.shape
        return float(self.aspect * rows / columns)

    def to_landscape(self) -> _Panel:
        """Return a transposed panel if the height exceeds the width, else the panel itself."""
        return _Panel(self.heading, self.pixels.swapaxes(0, 1), 1 / self.aspect) if self.ratio > 1 else self


def _panels(
    image: NDArray[Any], mask: NDArray[Any], colors: NDArray[Any], spacing: tuple[float, ...]
) -> list[_Panel]:
    """Return two panels of an image, without and with its classes, or one panel for each axis of a volume.

    Args:
        image: (C, *S), the image.
        mask: (*S), the class indices.
        colors: (K, 3), the colour of each class.
        spacing: the distance between pixels along each axis.
    """
    sizes = mask.shape
    if len(sizes) == 2:
        aspect = spacing[0] / spacing[1]
        overlay = plotting.overlay_classes(image, mask, colors)
        return [_Panel(plotting.size_text(sizes), plotting.to_rgb(image), aspect), _Panel("classes", overlay, aspect)]
    panels = []
    for axis, size in enumerate(sizes):
        cut = axis, size // 2
        image_slice, mask_slice = plotting.take_slice(image, cut), plotting.take_slice(mask[None], cut)[0]
        overlay = plotting.overlay_classes(image_slice, mask_slice, colors)
        row_spacing, column_spacing = (distance for i, distance in enumerate(spacing) if i != axis)
        panels.append(_Panel(plotting.slice_text(sizes, cut), overlay, row_spacing / column_spacing).to_landscape())
    return panels


def _draw_entry(figure: Figure, left: float, bottom: float, color: Any, text: str) -> None:
    """Draw a colour patch and its text in the legend; `left` and `bottom` are in inches from the figure's corner."""
    from matplotlib.patches import Rectangle

    width, height = figure.get_size_inches()
    corner = left / width, (bottom + (LINE - SIDE) / 2) / height
    figure.add_artist(Rectangle(corner, SIDE / width, SIDE / height, facecolor=color, edgecolor=GREY, linewidth=0.5))
    figure.text((left + 0.2) / width, (bottom + LINE / 2) / height, text, fontsize=8.5, color=GREY, va="center")
