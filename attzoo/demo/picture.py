"""Draw the coefficients of the trained blocks of the demo, in PyTorch and in Keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ..contract import Array
from ..ops import numpy as ops
from ..plotting import COLORS, GREY, MARGIN, NEUTRAL, png, style_ticks
from .results import BACKENDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    Panels = Mapping[str, Sequence[Axes]]   # backend -> the panel of each digit

# Lengths are in inches.
PANEL: Final = 0.84     # side of a panel
PAIR_GAP: Final = 0.16  # between digits
ROW_GAP: Final = 0.16   # between rows
TOP: Final = 0.42       # height of the title
BOTTOM: Final = 0.98    # height of the caption
NAME: Final = 2.15      # width of the names of blocks
SCALE: Final = 0.62     # width of the tick labels of the scales
OUTLINE: Final = 0.4    # grey value of the outline, from 0 to 1
TITLE: Final = "Learned attention coefficients of each block"
CAPTION: Final = """\
Coefficients in the last residual branch, for digits of the test set. The two networks of a row had the same initial
weights and the same batches. Maps: one coefficient per pixel (cbam: the mean over channels); bright pixels pass the
branch; the outline is that of the digit. Bars: one coefficient per channel, relative to 0.5. The scale of each row is
at the right."""


def draw(images: Array, attention: Mapping[str, Mapping[str, Array]]) -> bytes:
    """Return a PNG (bytes) of digits and of the attention coefficients of each block for them.

    Coefficients that vary over pixels are drawn as maps, averaged over channels; others are drawn as bars.

    Args:
        images: (N, 1, H, W), the digits.
        attention: the coefficients by the name of the block and the backend, (N, 1 or C, 1 or H, 1 or W).
    """
    values = {
        name: {backend: _flatten(array) for backend, array in arrays.items()} for name, arrays in attention.items()
    }
    names = sorted(values, key=lambda name: -values[name]["torch"].ndim)   # maps first
    figure, grid = _figure_with_grid(len(images), len(names))
    for n, image in enumerate(images):
        _draw_digit(figure.add_subplot(grid[0, 3 * n + 1 : 3 * n + 3]), image[0])
    for row, name in enumerate(names, start=1):
        panels = {
            backend: [figure.add_subplot(grid[row, 3 * n + column]) for n in range(len(images))]
            for column, backend in enumerate(BACKENDS, start=1)
        }
        _draw_name(figure.add_subplot(grid[row, 0]), name, values[name])
        if values[name]["torch"].ndim == 3:
            _draw_maps(panels, figure.add_subplot(grid[row, -1]), values[name], images)
        else:
            _draw_bars(panels, values[name])
        if row == 1:
            _draw_headings(panels)
    width, height = figure.get_size_inches()
    left = MARGIN / width
    figure.text(left, 1 - MARGIN / height, TITLE, fontsize=15, weight="bold", va="top")
    figure.text(left, MARGIN / height, CAPTION, fontsize=10, color=GREY, va="bottom", linespacing=1.35)
    return png(figure)


def _figure_with_grid(digits: int, blocks: int) -> tuple[Figure, GridSpec]:
    """Return an empty figure and its grid, with a row for the digits and one for each block.

    The columns are the names, then for each digit two panels and a gap, then the scales.
    """
    from matplotlib.figure import Figure

    columns = [NAME, *[PANEL, PANEL, PAIR_GAP] * digits, 0.13]
    gap = 0.07   # between columns
    width = 2 * MARGIN + sum(columns) + gap * (len(columns) - 1) + SCALE
    height = 2 * MARGIN + TOP + BOTTOM + (1 + blocks) * (PANEL + ROW_GAP)
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = figure.add_gridspec(
        1 + blocks,
        len(columns),
        width_ratios=columns,
        left=MARGIN / width,
        right=1 - (MARGIN + SCALE) / width,
        top=1 - (MARGIN + TOP) / height,
        bottom=(MARGIN + BOTTOM) / height,
        wspace=gap * len(columns) / sum(columns),
        hspace=ROW_GAP / PANEL,
    )
    return figure, grid


def _flatten(coefficients: Array) -> Array:
    """Return coefficients (N, C, 1, 1) as (N, C), and others (N, 1 or C, H, W) averaged over channels, (N, H, W)."""
    return coefficients[:, :, 0, 0] if coefficients.shape[2:] == (1, 1) else coefficients.mean(axis=1)


def _draw_digit(ax: Axes, image: Array) -> None:
    """Draw a digit (H, W) in black on white."""
    ax.imshow(image, cmap="gray_r")
    ax.set_axis_off()


def _draw_headings(panels: Panels) -> None:
    """Draw the name of its framework over each panel."""
    for backend, axes in panels.items():
        for ax in axes:
            ax.set_title(BACKENDS[backend], fontsize=9.5, color=COLORS[backend], pad=3)


def _draw_name(ax: Axes, name: str, values: Mapping[str, Array]) -> None:
    """Draw the name of a block and the largest difference between its coefficients in the two frameworks.

    Args:
        ax: the axes of the text.
        name: the name of the block.
        values: the coefficients by backend.
    """
    torch_values, keras_values = values.values()
    text = f"largest difference\nbetween frameworks: {np.abs(torch_values - keras_values).max():.2g}"
    ax.set_axis_off()
    ax.text(0, 0.56, name, fontsize=11, weight="bold", va="bottom", transform=ax.transAxes)
    ax.text(0, 0.46, text, fontsize=8.5, color=GREY, va="top", linespacing=1.3, transform=ax.transAxes)


def _draw_maps(panels: Panels, scale: Axes, values: Mapping[str, Array], images: Array) -> None:
    """Draw the coefficients of a block as maps with the outlines of digits, and their colour scale.

    Args:
        panels: the axes of each digit, by backend.
        scale: the axes of the colour scale.
        values: the coefficients (N, H, W), by backend.
        images: (N, 1, H, W), the digits.
    """
    low, high = min(array.min() for array in values.values()), max(array.max() for array in values.values())
    for backend, axes in panels.items():
        for ax, value, image in zip(axes, values[backend], images, strict=True):
            mapped = ax.imshow(value, cmap="viridis", vmin=low, vmax=high)
            _draw_outline(ax, image)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    bar = scale.figure.colorbar(mapped, cax=scale)
    bar.set_ticks([low, high], labels=[f"{low:.2f}", f"{high:.2f}"])
    bar.outline.set_visible(False)
    style_ticks(scale)


def _draw_outline(ax: Axes, image: Array) -> None:
    """Draw a contour around a digit (1, H, W). The digit is resampled for a smooth and padded for a closed contour."""
    from matplotlib.patheffects import withStroke

    padded = np.pad(image, [(0, 0), (1, 1), (1, 1)])
    resampled = ops.resize(padded[None], [8 * size for size in padded.shape[1:]], "linear", False)[0, 0]
    rows, columns = [(np.arange(size) + 0.5) / 8 - 1.5 for size in resampled.shape]
    line = ax.contour(columns, rows, resampled, levels=[OUTLINE], colors="white", linewidths=1.1)
    line.set_path_effects([withStroke(linewidth=2.2, foreground="black", alpha=0.55)])
    ax.set(xlim=(-0.5, image.shape[2] - 0.5), ylim=(image.shape[1] - 0.5, -0.5))


def _draw_bars(panels: Panels, values: Mapping[str, Array]) -> None:
    """Draw the coefficients of a block as bars from 0.5.

    Args:
        panels: the axes of each digit, by backend.
        values: the coefficients (N, C), by backend.
    """
    half_range = max(np.abs(array - NEUTRAL).max() for array in values.values())
    for backend, axes in panels.items():
        for ax, value in zip(axes, values[backend], strict=True):
            ax.bar(range(len(value)), value - NEUTRAL, bottom=NEUTRAL, width=0.75, color=COLORS[backend])
            ax.axhline(NEUTRAL, color=GREY, linewidth=0.6)
            ax.set(xticks=[], yticks=[], ylim=(NEUTRAL - 1.1 * half_range, NEUTRAL + 1.1 * half_range))
            ax.spines[:].set_color("#cccccc")
    rightmost = axes[-1]
    rightmost.yaxis.tick_right()
    rightmost.set_yticks([NEUTRAL - half_range, NEUTRAL, NEUTRAL + half_range])
    rightmost.yaxis.set_major_formatter("{x:.2f}")
    style_ticks(rightmost)
