"""Draw the second part of the demo: predictions for phantoms, coefficients of the gates, and the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import plotting
from ..plotting import COLORS as FRAMEWORKS
from ..plotting import GREY, MARGIN
from ..train.phantoms import CLASSES
from ..train.phantoms import COLORS as PALETTE
from .results import BACKENDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .organs import Examples
    from .results import Unet

ORGANS: Final = np.reshape(PALETTE, (-1, 3)) / 255   # the colour of each class
# Lengths are in inches.
PANEL: Final = 1.5     # side of a panel
GAP: Final = 0.12      # between panels
TOP: Final = 0.34      # height of the title
HEADING: Final = 0.4   # height of the headings of the panels
CURVES_TOP: Final = 0.62      # between the panels and the losses
CURVES: Final = 1.9           # height of the losses
CURVES_BOTTOM: Final = 0.5    # between the losses and the caption
CAPTION_HEIGHT: Final = 1.06
TICKS: Final = (0.1, 0.2, 0.5, 1, 2)   # of the losses
STYLES: Final[dict[str, Any]] = {"torch": "-", "keras": (0, (2, 1.5))}
TITLE: Final = "Predictions of gated and plain U-Nets, and the coefficients of the gates"
CAPTION: Final = """\
Synthetic phantoms of the test set. Bowel has the grey, the size and the shape of the pancreas; the spleen has the grey
of the liver. Gates: coefficients in PyTorch, from the coarsest to the finest gate; bright pixels pass the skip
connection; each panel has its own scale. Losses: cross-entropy + Dice of every step. Both frameworks began with the
same weights and had the same batches; their losses differ by rounding in float32."""


def draw(examples: Examples, nets: Sequence[Unet]) -> bytes:
    """Return a PNG (bytes) with a row of panels for each phantom, and the losses of each U-Net.

    Args:
        examples: the phantoms, with predictions and coefficients.
        nets: the measurements of each U-Net.
    """
    from matplotlib.figure import Figure

    colors = {f"gated, {name}": FRAMEWORKS[backend] for backend, name in BACKENDS.items()}
    headings = ["image", "truth", "plain U-Net", *colors, *_gate_headings(examples)]
    rows, width = len(examples.images), 2 * MARGIN + len(headings) * (PANEL + GAP) - GAP
    panels_top = MARGIN + TOP + HEADING
    curves_top = panels_top + rows * (PANEL + GAP) + CURVES_TOP
    height = curves_top + CURVES + CURVES_BOTTOM + CAPTION_HEIGHT + MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")

    def add_axes(left: float, top: float, axes_width: float, axes_height: float) -> Axes:
        """Add axes of a width and height, and return them. All lengths are in inches.

        left, top: distances of the axes from the left and the upper edge of the figure.
        """
        position = (left / width, 1 - (top + axes_height) / height, axes_width / width, axes_height / height)
        return figure.add_axes(position)

    for row in range(rows):
        for column, (heading, panel) in enumerate(zip(headings, _panels(examples, row), strict=True)):
            ax = add_axes(MARGIN + column * (PANEL + GAP), panels_top + row * (PANEL + GAP), PANEL, PANEL)
            ax.imshow(panel, cmap="viridis", interpolation="nearest", aspect="auto")
            plotting.remove_ticks(ax)
            if row == 0:
                ax.set_title(heading, fontsize=9.5, pad=4, color=colors.get(heading, "black"))
    curves_width = (width - 2 * MARGIN - len(nets) * 0.55 - 1.3) / len(nets)
    for i, net in enumerate(nets):
        _draw_losses(add_axes(MARGIN + 0.45 + i * (curves_width + 0.55), curves_top, curves_width, CURVES), net)
    _draw_legend(figure, width - MARGIN - 1.15, height - curves_top - 0.1)
    figure.text(MARGIN / width, 1 - MARGIN / height, TITLE, fontsize=15, weight="bold", va="top")
    figure.text(MARGIN / width, MARGIN / height, CAPTION, fontsize=10, color=GREY, va="bottom", linespacing=1.35)
    return plotting.png(figure)


def _panels(examples: Examples, row: int) -> list[NDArray[Any]]:
    """Return the panels of the phantom of index `row`: the image, classes over it, and each gate's coefficients.

    Panels are RGB (H, W, 3) in [0, 1]; those of the gates are (h, w).
    """
    image, predictions = examples.images[row], examples.predictions
    masks = [examples.masks, predictions["plain"]["torch"], *(predictions["gated"][backend] for backend in BACKENDS)]
    overlays = [plotting.overlay_classes(image, mask[row], ORGANS) for mask in masks]
    return [plotting.to_rgb(image), *overlays, *(array[row, 0] for array in examples.gates.values())]


def _gate_headings(examples: Examples) -> list[str]:
    """Return a heading for each gate: the last part of its path and the size of its coefficients."""
    return [
        f"gate {name.rpartition('.')[2]}, {array.shape[2]} x {array.shape[3]}" for name, array in examples.gates.items()
    ]


def _draw_losses(ax: Axes, net: Unet) -> None:
    """Draw the losses of every step of a U-Net in both frameworks; the title has the mean Dice of the organs."""
    for backend, losses in net.losses.items():
        ax.plot(losses, color=FRAMEWORKS[backend], linestyle=STYLES[backend], linewidth=1.2, label=BACKENDS[backend])
    means = {backend: np.mean([dice for dice in net.dice[backend][1:] if dice is not None]) for backend in BACKENDS}
    dice = ", ".join(f"{mean:.2f} {BACKENDS[backend]}" for backend, mean in means.items())
    ax.set_title(f"{net.name} U-Net, loss; mean Dice of the organs {dice}", fontsize=9.5, loc="left")
    ax.set_yscale("log")
    ax.set_yticks(TICKS, labels=map(str, TICKS))
    ax.minorticks_off()
    ax.set_xlabel("step", fontsize=9, color=GREY)
    ax.spines[["top", "right"]].set_visible(False)
    plotting.style_ticks(ax)


def _draw_legend(figure: Figure, left: float, top: float) -> None:
    """Draw the legend of organs and frameworks.

    Args:
        figure: the figure.
        left: the left edge of the legend, in inches from the left edge of the figure.
        top: the upper edge of the legend, in inches from the lower edge of the figure.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [Patch(color=ORGANS[k], label=name) for k, name in enumerate(CLASSES) if k]
    entries += [
        Line2D([], [], color=FRAMEWORKS[backend], linestyle=STYLES[backend], label=name)
        for backend, name in BACKENDS.items()
    ]
    width, height = figure.get_size_inches()
    figure.legend(
        handles=entries, loc="upper left", bbox_to_anchor=(left / width, top / height), frameon=False, fontsize=9.5
    )
