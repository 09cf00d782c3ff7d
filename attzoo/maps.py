"""Attention maps: record the coefficients of every block of a model, and draw them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from . import plotting
from .adapters import NO_BLOCKS, adapter, framework_of
from .contract import Array, by_name, join_path
from .hints import nearest
from .plotting import COLORS, GREY, MARGIN, NEUTRAL
from .recording import recording

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EAGERLY: Final = (
    "expected the model to be called eagerly, model(x), in the `with` block and in the thread that entered it: "
    "attention_maps records no calls that are traced or compiled (model.predict, tf.function, jit, torch.func), no "
    "calls of other threads or of copies of the model, and no blocks that do not call their `attention`"
)
PANEL: Final = 2.1      # inches, width of a panel
SCALE: Final = 0.74     # inches, width of the colour scale to the right of a panel
HEAD: Final = 0.5       # inches, height of the text above a panel
TOP: Final = 0.28       # inches, height of the title
FOOT: Final = 0.72      # inches, height of the caption
LONGEST: Final = 30     # largest number of characters of a block's path in a heading
TITLE: Final = "Where the network looks"
CAPTION: Final = """\
Coefficients of each block, in the order of computation; every panel has its own scale.
Maps are drawn over the image: bright pixels have large coefficients. Bars: one per channel, upward for a coefficient
above 0.5, downward below."""


class Maps(dict[str, Array]):
    """The coefficients of the latest call of each block, channels first, by the path of the block in the model."""

    def __missing__(self, path: str) -> Array:
        """Raise KeyError with the recorded paths and the one nearest to `path`, or with the causes of no recording."""
        known_text = f"known: {', '.join(self)}{nearest(path, self)}" if self else EAGERLY
        raise KeyError(f"no map of {path!r}; {known_text}")


@contextmanager
def attention_maps(model: Any) -> Iterator[Maps]:
    """Record the attention coefficients of every block of a model during the `with` block, by the block's path::

        with attzoo.attention_maps(model) as maps:
            model(x)
        maps["layer3.1.attention"]      # (N, C, 1, 1) or (N, 1, *S), a NumPy array of float32, or of float64

    Arrays are channels first and belong to the latest call. A block that the model contains under several paths is
    recorded under the first path. A block made of blocks is recorded as its parts: a CBAM at "block" as "block.channel"
    and "block.spatial". Each of several arrays of a block is recorded as the block's path, a dot and the array's name.

    Only calls in the context that entered the `with` block are recorded. Other threads are recorded only if they run in
    a copy of the context (`contextvars.copy_context().run`, `asyncio.to_thread`). Copies of the model made inside are
    not recorded. Outputs, gradients and the number of computations do not change, and nothing is left on the model. A
    model compiled with torch.compile runs eagerly inside.

    Args:
        model: a torch module or Keras layer that contains blocks, attzoo's or a third party's.

    Yields:
        A dictionary that maps the path of each block to its coefficients as a NumPy array. The path is as
        in `named_modules` in torch, and consists of the names of the layers joined by dots in Keras.

    Raises:
        TypeError: if `model` is not a model of torch or Keras.
        ValueError: if the model contains no blocks or is on several devices. At the end of the `with` block, if nothing
            else was raised: if a call was traced (`model.predict`, tf.function, jit), or if no block was called.

    """
    backend = framework_of(model)
    if backend is None:
        raise TypeError(f"expected a model of torch or Keras, got {type(model).__name__}")
    framework = adapter(backend)   # imported before tracing: torch.export of 2.6 cannot trace imports
    blocks = framework.blocks(model)
    if not blocks:
        raise ValueError(f"expected a model that contains attention blocks, got a {type(model).__name__}{NO_BLOCKS}")
    maps, traced = Maps(), set()
    paths = {id(block): path for path, block in blocks.items()}

    def record(block: Any, coefficients: Any) -> None:
        """Store the coefficients of a block in `maps`; if they have no values, store their paths in `traced`."""
        block_backend = framework_of(block) or backend   # a torch model may contain Keras blocks
        for name, tensor in by_name(coefficients).items():
            path, array = join_path(paths[id(block)], name), adapter(block_backend).coefficients(tensor, block)
            if array is None:
                traced.add(path)
            else:   # an earlier call may have been traced: Keras traces a model to build it
                traced.discard(path)
                maps[path] = array

    with framework.eager(), recording(blocks.values(), record):
        yield maps
    if traced or not maps:
        raise ValueError(EAGERLY)


# ---- drawing ---------------------------------------------------------------------------------------


def draw(image: Array, maps: Mapping[str, Array], title: str = TITLE, spacing: Sequence[float] = ()) -> bytes:
    """Return a PNG (bytes) of an image and of the coefficients of each block for this image.

    Coefficients that vary over space are drawn over the image, averaged over channels. Other coefficients are bars.
    Of a volume, the middle slice along the shortest axis is drawn.

    Args:
        image: (C, *S), the image.
        maps: coefficients by the path of the block, each (N, C or 1, *S, a smaller size, or 1s). The first of the N
            samples is drawn.
        title: title of the figure.
        spacing: distance between pixels along each axis, in any unit; equal distances if empty.

    """
    from matplotlib.figure import Figure

    middle = plotting.middle_slice(image.shape[1:])
    pixels = plotting.to_rgb(plotting.take_slice(image, middle))
    pixel_sides = [side for axis, side in enumerate(spacing) if middle is None or axis != middle[0]] or [1.0, 1.0]
    panel_height = PANEL * min(max(pixels.shape[0] * pixel_sides[0] / (pixels.shape[1] * pixel_sides[1]), 0.3), 1.6)
    columns = min(1 + len(maps), max(4, ceil(len(maps) ** 0.5)))
    rows = ceil((1 + len(maps)) / columns)
    width = 2 * MARGIN + max(columns * (PANEL + SCALE), 7.2)
    height = 2 * MARGIN + TOP + rows * (HEAD + panel_height) + FOOT
    figure = Figure(figsize=(width, height), facecolor="white")

    def axes(i: int, left: float = 0.0, panel_width: float = PANEL) -> Axes:
        """Add axes `panel_width` inches wide to cell i of the figure, `left` inches from its edge; return the axes."""
        x = MARGIN + i % columns * (PANEL + SCALE) + left
        y = height - MARGIN - TOP - (i // columns + 1) * (HEAD + panel_height)
        return figure.add_axes((x / width, y / height, panel_width / width, panel_height / height))

    ax = axes(0)
    ax.imshow(pixels, aspect="auto", interpolation="nearest")
    plotting.remove_ticks(ax)
    _label(ax, "image", plotting.size_text(image.shape[1:]), plotting.slice_text(image.shape[1:], middle))
    for i, (name, array) in enumerate(maps.items(), start=1):
        if max(array.shape[2:]) == 1:
            _draw_bars(axes(i), name, array[0].reshape(-1))
        else:
            _draw_map(axes(i), axes(i, PANEL + 0.07, 0.08), name, array[0], image, middle)
    figure.text(MARGIN / width, 1 - MARGIN / height, plotting.escape_text(title), fontsize=15, weight="bold", va="top")
    figure.text(MARGIN / width, MARGIN / height, CAPTION, fontsize=9, color=GREY, va="bottom", linespacing=1.35)
    return plotting.png(figure, dpi=150)


def _label(ax: Axes, name: str, *notes: str) -> None:
    """Write the name of a block, and `notes` in small letters, above its panel."""
    name = name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}"
    position: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    ax.annotate(plotting.escape_text(name) or "(the model)", (0, 1), (0, 13), fontsize=9.5, weight="bold", **position)
    ax.annotate(", ".join(filter(None, notes)), (0, 1), (0, 3), fontsize=8, color=GREY, **position)


def _draw_map(ax: Axes, scale: Axes, name: str, coefficients: Array, image: Array, cut: tuple[int, int] | None) -> None:
    """Draw coefficients over the image in grey, stretched to the size of the image, and their colour scale.

    Args:
        ax: the axes of the panel.
        scale: the axes of the colour scale.
        name: the path of the block.
        coefficients: (C, *T).
        image: (C, *S), the image.
        cut: the axis and the index of the drawn slice of a volume; None for an image.

    """
    background = plotting.to_rgb(plotting.take_slice(image.mean(axis=0, keepdims=True), cut))
    value = plotting.take_slice(coefficients, cut, image.shape[1:]).mean(axis=0)
    low, high = _range(value)
    rows, columns = background.shape[:2]
    edges = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    ax.imshow(background, aspect="auto", interpolation="nearest")
    overlay = ax.imshow(
        value, vmin=low, vmax=high, extent=edges, cmap="viridis", alpha=0.65, aspect="auto", interpolation="nearest"
    )
    plotting.remove_ticks(ax)
    channels = len(coefficients)
    _label(ax, name, plotting.size_text(coefficients.shape[1:]), f"mean of {channels} channels" if channels > 1 else "")
    bar = scale.figure.colorbar(overlay, cax=scale)
    bar.set_ticks([low, high], labels=plotting.tick_labels(low, high))
    bar.outline.set_visible(False)
    plotting.style_ticks(scale)


def _draw_bars(ax: Axes, name: str, value: Array) -> None:
    """Draw coefficients (C,) of a block as bars from 0.5, the value of sigmoid(0)."""
    low, high = _range(value)
    half_range = max(high - NEUTRAL, NEUTRAL - low) or 1.0
    linewidth = 0.8 * 72 * PANEL / len(value)   # points
    ax.vlines(range(len(value)), NEUTRAL, value, color=COLORS["torch"], linewidth=linewidth)
    ax.axhline(NEUTRAL, color=GREY, linewidth=0.6)
    plotting.remove_ticks(ax, color="#cccccc")
    ax.set(xlim=(-0.5, len(value) - 0.5), ylim=(NEUTRAL - 1.1 * half_range, NEUTRAL + 1.1 * half_range))
    ax.yaxis.tick_right()
    ticks = NEUTRAL - half_range, NEUTRAL, NEUTRAL + half_range
    ax.set_yticks(ticks, labels=plotting.tick_labels(*ticks))
    plotting.style_ticks(ax)
    _label(ax, name, f"{len(value)} channels")


def _range(value: Array) -> tuple[float, float]:
    """Return the smallest and the largest finite value of an array; 0 and 1 if it has no finite value."""
    finite = value[np.isfinite(value)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
