"""What the blocks of the demo learned to attend to, as one picture: PyTorch and Keras side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ..contract import Array
from ..look import COLORS, GREY, MARGIN, NEUTRAL, png, small
from ..ops import numpy as ops
from .results import BACKENDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Panels = Mapping[str, Sequence[Axes]]   # by backend, one for each digit

PANEL: Final = 0.84     # inches, the side of a panel
HEAD: Final = 0.42      # inches, for the title
FOOT: Final = 0.98      # inches, for the caption
NAME: Final = 1.75      # inches, for the names of the blocks
SCALE: Final = 0.62     # inches, for the scales at the right
INK: Final = 0.4        # grey value, from 0 to 1, of the outline
TITLE: Final = "What attention learned, block by block"
CAPTION: Final = """\
Coefficients in the last residual branch, for test digits that no net was trained on. The two nets of a row started
from the same weights and saw the same batches. Maps: one coefficient per pixel (cbam: their mean over channels), bright
where the branch is let through; the outline is the digit's. Bars: one coefficient per channel, up where it is more than
0.5, down where it is less. Each row has its own scale, at the right."""


def draw(images: Array, attention: Mapping[str, Mapping[str, Array]]) -> bytes:
    """A PNG of digits (N, 1, H, W) and of coefficients (N, 1 or C, 1 or H, 1 or W), by block and backend.

    Coefficients that differ over space are maps, the mean over channels where they differ there too; others are bars.
    """
    from matplotlib.figure import Figure

    shown = {name: {b: _flat(a) for b, a in each.items()} for name, each in attention.items()}
    names = sorted(shown, key=lambda name: -shown[name]["torch"].ndim)   # maps first
    columns = [NAME, *[PANEL, PANEL, 0.16] * len(images), 0.13]
    gap = 0.07   # between neighbours
    width = 2 * MARGIN + sum(columns) + gap * (len(columns) - 1) + SCALE
    height = 2 * MARGIN + HEAD + FOOT + (1 + len(names)) * (PANEL + 0.16)
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = figure.add_gridspec(
        1 + len(names),
        len(columns),
        width_ratios=columns,
        left=MARGIN / width,
        right=1 - (MARGIN + SCALE) / width,
        top=1 - (MARGIN + HEAD) / height,
        bottom=(MARGIN + FOOT) / height,
        wspace=gap * len(columns) / sum(columns),
        hspace=0.16 / PANEL,
    )
    for n, image in enumerate(images):
        _digit(figure.add_subplot(grid[0, 3 * n + 1 : 3 * n + 3]), image[0])
    for r, name in enumerate(names, start=1):
        panels = {
            backend: [figure.add_subplot(grid[r, 3 * n + k]) for n in range(len(images))]
            for k, backend in enumerate(BACKENDS, start=1)
        }
        _name(figure.add_subplot(grid[r, 0]), name, shown[name])
        if shown[name]["torch"].ndim == 3:
            _maps(panels, figure.add_subplot(grid[r, -1]), shown[name], images)
        else:
            _bars(panels, shown[name])
        if r == 1:
            _headings(panels)
    edge = MARGIN / width
    figure.text(edge, 1 - MARGIN / height, TITLE, fontsize=15, weight="bold", va="top")
    figure.text(edge, MARGIN / height, CAPTION, fontsize=10, color=GREY, va="bottom", linespacing=1.35)
    return png(figure)


def _flat(a: Array) -> Array:
    """(N, C, 1, 1) -> (N, C), bars; (N, 1 or C, H, W) -> (N, H, W), maps."""
    return a[:, :, 0, 0] if a.shape[2:] == (1, 1) else a.mean(axis=1)


def _digit(ax: Axes, image: Array) -> None:
    ax.imshow(image, cmap="gray_r")
    ax.set_axis_off()


def _headings(panels: Panels) -> None:
    for backend, axes in panels.items():
        for ax in axes:
            ax.set_title(BACKENDS[backend], fontsize=9.5, color=COLORS[backend], pad=3)


def _name(ax: Axes, name: str, values: Mapping[str, Array]) -> None:
    one, other = values.values()
    text = f"largest difference\nbetween the two: {np.abs(one - other).max():.2g}"
    ax.set_axis_off()
    ax.text(0, 0.56, name, fontsize=11, weight="bold", va="bottom", transform=ax.transAxes)
    ax.text(0, 0.46, text, fontsize=8.5, color=GREY, va="top", linespacing=1.3, transform=ax.transAxes)


def _maps(panels: Panels, scale: Axes, values: Mapping[str, Array], images: Array) -> None:
    low, high = min(a.min() for a in values.values()), max(a.max() for a in values.values())
    for backend, axes in panels.items():
        for ax, value, image in zip(axes, values[backend], images, strict=True):
            drawn = ax.imshow(value, cmap="viridis", vmin=low, vmax=high)
            _outline(ax, image)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    bar = scale.figure.colorbar(drawn, cax=scale)
    bar.set_ticks([low, high], labels=[f"{low:.2f}", f"{high:.2f}"])
    bar.outline.set_visible(False)
    small(scale)


def _outline(ax: Axes, image: Array) -> None:
    """A line around the ink, smoothed by resampling, closed at the border by one blank pixel."""
    from matplotlib.patheffects import withStroke

    padded = np.pad(image, [(0, 0), (1, 1), (1, 1)])
    fine = ops.resize(padded[None], [8 * size for size in padded.shape[1:]], "linear", False)[0, 0]
    place = [(np.arange(size) + 0.5) / 8 - 1.5 for size in fine.shape]
    line = ax.contour(place[1], place[0], fine, levels=[INK], colors="white", linewidths=1.1)
    line.set_path_effects([withStroke(linewidth=2.2, foreground="black", alpha=0.55)])
    ax.set(xlim=(-0.5, image.shape[2] - 0.5), ylim=(image.shape[1] - 0.5, -0.5))


def _bars(panels: Panels, values: Mapping[str, Array]) -> None:
    reach = max(np.abs(a - NEUTRAL).max() for a in values.values())
    for backend, axes in panels.items():
        for ax, value in zip(axes, values[backend], strict=True):
            ax.bar(range(len(value)), value - NEUTRAL, bottom=NEUTRAL, width=0.75, color=COLORS[backend])
            ax.axhline(NEUTRAL, color=GREY, linewidth=0.6)
            ax.set(xticks=[], yticks=[], ylim=(NEUTRAL - 1.1 * reach, NEUTRAL + 1.1 * reach))
            ax.spines[:].set_color("#cccccc")
    last = axes[-1]
    last.yaxis.tick_right()
    last.set_yticks([NEUTRAL - reach, NEUTRAL, NEUTRAL + reach])
    last.yaxis.set_major_formatter("{x:.2f}")
    small(last)
