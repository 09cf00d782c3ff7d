"""Where a model looks: the coefficients of every block in it while it runs, and a picture of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from . import look
from .adapters import NO_BLOCKS, adapter, framework_of
from .contract import Array
from .look import COLORS, GREY, MARGIN, NEUTRAL
from .recording import recording

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EAGERLY: Final = (
    "expected the model to be called eagerly, model(x), by the thread that entered attention_maps: what is traced, "
    "compiled or under torch.func gives no numbers to look at, and calls of other threads are not recorded, nor are "
    "copies of the model and blocks that compute without their `attention`"
)
PANEL: Final = 2.1      # inches, the width of a panel
SCALE: Final = 0.74     # inches, for the scale at its right
HEAD: Final = 0.5       # inches, for what stands over it
TOP: Final = 0.28       # inches, for the title
FOOT: Final = 0.72      # inches, for the caption
LONGEST: Final = 30     # letters of a block's path
TITLE: Final = "Where the network looks"
CAPTION: Final = """\
Coefficients of each block, in the order in which the network computes them; every panel has its own scale.
Maps, over the image: bright where the signal is let through. Bars: one per channel, up where the coefficient
is more than 0.5, down where it is less."""

class Maps(dict[str, Array]):
    """Coefficients, channels first, by the path of the block that gave them last."""

    def __missing__(self, path: str) -> Array:
        known = f"known: {', '.join(self)}" if self else EAGERLY
        raise KeyError(f"no map of {path!r}; {known}")


@contextmanager
def attention_maps(model: Any) -> Iterator[Maps]:
    """What every block in a model attends to, for the calls made inside.

        with attzoo.attention_maps(model) as maps:
            model(x)
        maps["layer3.1.attention"]      # (N, C, 1, 1) or (N, 1, *S), a NumPy array of float32, or of float64

    model: any torch module or Keras layer that holds blocks, ours or a third party's. A block is called by its path:
    in torch that of `named_modules`, in Keras the names of layers, joined by dots. Arrays are channels first and of
    the latest call; a block that stands in several places has its first path, and of a call its last map. A block
    made of blocks reports through its parts: a CBAM at "block" as "block.channel" and "block.spatial".

    Only calls in the context that entered this are recorded, not those of other threads, unless they run in a copy of
    the context (`contextvars.copy_context().run`, `asyncio.to_thread`); copies of the model that are made inside are
    not recorded either. Nothing about the model changes: what a call gives, its gradients and how often coefficients
    are computed stay, and afterwards nothing is left behind. A model of torch.compile runs eagerly inside.
    Raises TypeError for what is no model, ValueError for one without blocks or on several devices, and in the end,
    unless something else went wrong, ValueError where a traced call (`model.predict`, tf.function, jit) gave no numbers
    to look at, or no block was called.
    """
    backend = framework_of(model)
    if backend is None:
        raise TypeError(f"expected a model of torch or Keras, got {type(model).__name__}")
    framework = adapter(backend)   # imported here: torch.export of 2.6 traces no import
    found = framework.blocks(model)
    if not found:
        raise ValueError(f"expected a model that holds attention blocks, got a {type(model).__name__}{NO_BLOCKS}")
    maps, traced = Maps(), set()
    paths = {id(block): path for path, block in found.items()}

    def record(block: Any, tensor: Any) -> None:
        path = paths[id(block)]
        array = adapter(framework_of(block) or backend).coefficients(tensor, block)   # a torch model may hold Keras's
        if array is None:
            traced.add(path)
        else:   # after a trace too, as Keras makes one of a model that is not built yet
            traced.discard(path)
            maps[path] = array

    with framework.eager(), recording(found.values(), record):
        yield maps
    if traced or not maps:
        raise ValueError(EAGERLY)


# ---- the picture -----------------------------------------------------------------------------------


def draw(image: Array, maps: Mapping[str, Array], title: str = TITLE, spacing: Sequence[float] = ()) -> bytes:
    """A PNG of an image (C, *S), and of what each block attends to in it: the first of every (N, C or 1, *S or 1..).

    Coefficients that differ over space are laid over the image, their mean over channels where they differ there
    too; others are bars. Volumes are shown by the middle slice of their shortest axis.
    spacing: between pixels, one for each axis, which they are drawn to; none for squares and cubes.
    """
    from matplotlib.figure import Figure

    cut = look.middle(image.shape[1:])
    shown = look.visible(look.flat(image, cut))
    sides = [side for axis, side in enumerate(spacing) if cut is None or axis != cut[0]] or [1.0, 1.0]
    tall = PANEL * min(max(shown.shape[0] * sides[0] / (shown.shape[1] * sides[1]), 0.3), 1.6)
    columns = min(1 + len(maps), max(4, ceil(len(maps) ** 0.5)))
    rows = ceil((1 + len(maps)) / columns)
    width = 2 * MARGIN + max(columns * (PANEL + SCALE), 7.2)
    height = 2 * MARGIN + TOP + rows * (HEAD + tall) + FOOT
    figure = Figure(figsize=(width, height), facecolor="white")

    def axes(i: int, left: float = 0.0, wide: float = PANEL) -> Axes:
        x = MARGIN + i % columns * (PANEL + SCALE) + left
        y = height - MARGIN - TOP - (i // columns + 1) * (HEAD + tall)
        return figure.add_axes((x / width, y / height, wide / width, tall / height))

    ax = axes(0)
    ax.imshow(shown, aspect="auto", interpolation="nearest")
    look.bare(ax)
    _say(ax, "image", look.sizes(image.shape[1:]), look.told(image.shape[1:], cut))
    for i, (name, a) in enumerate(maps.items(), start=1):
        if max(a.shape[2:]) == 1:
            _bars(axes(i), name, a[0].reshape(-1))
        else:
            _over(axes(i), axes(i, PANEL + 0.07, 0.08), name, a[0], image, cut)
    figure.text(MARGIN / width, 1 - MARGIN / height, look.literal(title), fontsize=15, weight="bold", va="top")
    figure.text(MARGIN / width, MARGIN / height, CAPTION, fontsize=9, color=GREY, va="bottom", linespacing=1.35)
    return look.png(figure, dpi=150)


def _say(ax: Axes, name: str, *about: str) -> None:
    """A block's name over its panel, and in small letters what there is to know."""
    name = name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}"
    over: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    ax.annotate(look.literal(name) or "(the model)", (0, 1), (0, 13), fontsize=9.5, weight="bold", **over)
    ax.annotate(", ".join(filter(None, about)), (0, 1), (0, 3), fontsize=8, color=GREY, **over)


def _over(ax: Axes, scale: Axes, name: str, a: Array, image: Array, cut: tuple[int, int] | None) -> None:
    """Coefficients (C, *S) over the image (C, *S) in grey, whatever the size of either, and their scale."""
    under = look.visible(look.flat(image.mean(axis=0, keepdims=True), cut))
    value = look.flat(a, cut, image.shape[1:]).mean(axis=0)
    low, high = _range(value)
    tall, wide = under.shape[:2]
    edges = (-0.5, wide - 0.5, tall - 0.5, -0.5)
    ax.imshow(under, aspect="auto", interpolation="nearest")
    drawn = ax.imshow(
        value, vmin=low, vmax=high, extent=edges, cmap="viridis", alpha=0.65, aspect="auto", interpolation="nearest"
    )
    look.bare(ax)
    _say(ax, name, look.sizes(a.shape[1:]), f"mean of {len(a)} channels" if len(a) > 1 else "")
    bar = scale.figure.colorbar(drawn, cax=scale)
    bar.set_ticks([low, high], labels=look.numbers(low, high))
    bar.outline.set_visible(False)
    look.small(scale)


def _bars(ax: Axes, name: str, value: Array) -> None:
    """Coefficients (C,) as bars that stand on sigmoid(0)."""
    low, high = _range(value)
    reach = max(high - NEUTRAL, NEUTRAL - low) or 1.0
    thick = 0.8 * 72 * PANEL / len(value)   # points
    ax.vlines(range(len(value)), NEUTRAL, value, color=COLORS["torch"], linewidth=thick)
    ax.axhline(NEUTRAL, color=GREY, linewidth=0.6)
    look.bare(ax, color="#cccccc")
    ax.set(xlim=(-0.5, len(value) - 0.5), ylim=(NEUTRAL - 1.1 * reach, NEUTRAL + 1.1 * reach))
    ax.yaxis.tick_right()
    ticks = NEUTRAL - reach, NEUTRAL, NEUTRAL + reach
    ax.set_yticks(ticks, labels=look.numbers(*ticks))
    look.small(ax)
    _say(ax, name, f"{len(value)} channels")


def _range(value: Array) -> tuple[float, float]:
    """The least and the largest finite value; all of [0, 1] where there is none."""
    finite = value[np.isfinite(value)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
