"""The second act as one picture: what each network finds in phantoms, where its gates look, how the losses fell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import look
from ..look import COLORS as FRAMEWORKS
from ..look import GREY, MARGIN
from ..train.phantoms import CLASSES
from ..train.phantoms import COLORS as PALETTE
from .results import BACKENDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .organs import Shown
    from .results import Unet

ORGANS: Final = np.reshape(PALETTE, (-1, 3)) / 255
PANEL: Final = 1.5     # inches, the side of a panel
GAP: Final = 0.12      # inches, between panels
HEAD: Final = 0.34     # inches, for the title
NAME: Final = 0.4      # inches, for what stands over a row
CURVES: Final = 1.9    # inches, the height of the losses
FOOT: Final = 1.06     # inches, for the caption
TICKS: Final = (0.1, 0.2, 0.5, 1, 2)   # of the losses
STYLES: Final[dict[str, Any]] = {"torch": "-", "keras": (0, (2, 1.5))}
TITLE: Final = "What gated and plain U-Nets find, and where the gates look"
CAPTION: Final = """\
Synthetic phantoms that no network was trained on. Loops of bowel have the grey, the size and the shape of the pancreas,
and the spleen has the liver's grey. Gates, from the coarsest to the finest, as PyTorch has them: bright where the skip
is let through, each panel on its own scale. Losses (cross-entropy + Dice) of every step: both frameworks began with the
same weights and saw the same batches, and go apart as rounding does in float32."""


def draw(shown: Shown, nets: Sequence[Unet]) -> bytes:
    """A PNG: a row for each phantom, and the losses."""
    from matplotlib.figure import Figure

    colors = {f"gated, {name}": FRAMEWORKS[backend] for backend, name in BACKENDS.items()}
    headings = ["image", "truth", "plain U-Net", *colors, *_gates(shown)]
    rows, width = len(shown.images), 2 * MARGIN + len(headings) * (PANEL + GAP) - GAP
    height = 2 * MARGIN + HEAD + NAME + rows * (PANEL + GAP) + 0.62 + CURVES + 0.5 + FOOT
    figure = Figure(figsize=(width, height), facecolor="white")

    def axes(left: float, top: float, wide: float, tall: float) -> Axes:
        return figure.add_axes((left / width, 1 - (top + tall) / height, wide / width, tall / height))

    for r in range(rows):
        image = shown.images[r]
        panels: list[NDArray[Any]] = [look.visible(image)]
        masks = [shown.truth, shown.found["plain"]["torch"], *(shown.found["gated"][b] for b in BACKENDS)]
        panels += [look.tinted(image, mask[r], ORGANS) for mask in masks]
        panels += [a[r, 0] for a in shown.gates.values()]
        for c, (heading, panel) in enumerate(zip(headings, panels, strict=True)):
            ax = axes(MARGIN + c * (PANEL + GAP), MARGIN + HEAD + NAME + r * (PANEL + GAP), PANEL, PANEL)
            ax.imshow(panel, cmap="viridis", interpolation="nearest", aspect="auto")
            look.bare(ax)
            if r == 0:
                ax.set_title(heading, fontsize=9.5, pad=4, color=colors.get(heading, "black"))
    top = MARGIN + HEAD + NAME + rows * (PANEL + GAP) + 0.62
    wide = (width - 2 * MARGIN - len(nets) * 0.55 - 1.3) / len(nets)
    for i, net in enumerate(nets):
        _losses(axes(MARGIN + 0.45 + i * (wide + 0.55), top, wide, CURVES), net)
    _legend(figure, width - MARGIN - 1.15, height - top - 0.1)
    figure.text(MARGIN / width, 1 - MARGIN / height, TITLE, fontsize=15, weight="bold", va="top")
    figure.text(MARGIN / width, MARGIN / height, CAPTION, fontsize=10, color=GREY, va="bottom", linespacing=1.35)
    return look.png(figure)


def _gates(shown: Shown) -> list[str]:
    return [f"gate {name.rpartition('.')[2]}, {a.shape[2]} x {a.shape[3]}" for name, a in shown.gates.items()]


def _losses(ax: Axes, net: Unet) -> None:
    for backend, losses in net.losses.items():
        ax.plot(losses, color=FRAMEWORKS[backend], linestyle=STYLES[backend], linewidth=1.2, label=BACKENDS[backend])
    organs = (np.mean([d for d in net.dice[b][1:] if d is not None]) for b in BACKENDS)
    told = ", ".join(f"{dice:.2f} {BACKENDS[b]}" for b, dice in zip(BACKENDS, organs, strict=True))
    ax.set_title(f"{net.name} U-Net, loss; mean Dice of the organs {told}", fontsize=9.5, loc="left")
    ax.set_yscale("log")
    ax.set_yticks(TICKS, labels=map(str, TICKS))
    ax.minorticks_off()
    ax.set_xlabel("step", fontsize=9, color=GREY)
    ax.spines[["top", "right"]].set_visible(False)
    look.small(ax)


def _legend(figure: Figure, left: float, top: float) -> None:
    """Organs and frameworks, their places in inches."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [Patch(color=ORGANS[k], label=name) for k, name in enumerate(CLASSES) if k]
    entries += [Line2D([], [], color=FRAMEWORKS[b], linestyle=STYLES[b], label=name) for b, name in BACKENDS.items()]
    width, height = figure.get_size_inches()
    figure.legend(
        handles=entries, loc="upper left", bbox_to_anchor=(left / width, top / height), frameon=False, fontsize=9.5
    )
