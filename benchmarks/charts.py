"""Draw bar charts and line charts with matplotlib, and convert them to SVG for an HTML page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from math import exp, log
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from attzoo import plotting

from .figures import percent, times, unit_of
from .runs import Provider, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, RULE, PAPER, PALE = "#1b1b1c", "#dcdcdd", "#ffffff", "#c9cdd4"
COLORS: Final = {   # by library; distinguishable for colour-blind readers, and every bar is labelled
    "attzoo": plotting.COLORS["torch"], "timm": plotting.COLORS["keras"], "torchvision": "#d99a1c", "MONAI": "#2c9c76",
}   # fmt: skip
OTHER: Final = "#8b8b8c"   # of other libraries
STYLES: Final = {   # colour -> variable in the page's style sheet, which has a value for a light and a dark page
    INK: "ink", plotting.GREY: "grey", RULE: "rule", PAPER: "paper", PALE: "pale", OTHER: "other",
    **{color: library for library, color in COLORS.items()},
}   # fmt: skip
LINE: Final = 0.235     # inches per bar
MARKERS: Final = "osD^vP"


@dataclass(frozen=True)
class Bar:
    """A bar with its value as text at the end.

    Attributes:
        value: length of the bar.
        color: color of the bar.
        form: function that formats the value.
        mark: position of a thick mark across the bar; None for no mark.
        whisker: ends of a whisker; None for no whisker.

    """

    value: float
    color: str
    form: Callable[[float], str] = times
    mark: float | None = None
    whisker: tuple[float, float] | None = None

    @property
    def end(self) -> float:
        """Return the largest value that the bar, its mark or its whisker reaches."""
        return max(self.value, self.mark or 0.0, *(self.whisker or ()))


Bars = Mapping[tuple[str, str], Bar]   # block, provider -> bar


def color(provider: Provider) -> str:
    """Return the color in which a provider is drawn."""
    return COLORS.get(provider.library, OTHER)


# ---- bar charts ------------------------------------------------------------------------------------------------------


def bar_chart(
    panels: Mapping[str, Bars], xlabel: str, *, line: float | None = None, title: str = "", note: str = ""
) -> Figure:
    """Draw panels of horizontal bars side by side, grouped by block; return the figure.

    Args:
        panels: bars, by block and provider, by the panel's title.
        xlabel: label of the horizontal axes.
        line: position of a dashed vertical line in every panel; None for no line.
        title: title of the figure.
        note: text below the panels.

    """
    bar_ys, block_ys, end = _positions(panels)
    left = 0.35 + max(0.085 * max(map(len, block_ys)) - 0.1, 0.074 * max(len(label) for _, label in bar_ys))
    top_margin, bottom_margin = 0.45 + 0.4 * bool(title), 0.55 + 0.17 * len(note.splitlines())
    width, height = 9.0, top_margin + bottom_margin + LINE * end
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    panel_width = (width - left - plotting.MARGIN) / len(panels)
    for i, (panel_title, bars) in enumerate(panels.items()):
        box = (
            (left + i * panel_width) / width, bottom_margin / height, (panel_width - 0.2) / width, LINE * end / height
        )   # fmt: skip
        ax = figure.add_axes(box, facecolor="none", ylim=(end, 0))
        _draw_bars(ax, bars, bar_ys, line)
        _set_scale(ax, xlabel, fractions=any(bar.form is percent for bar in bars.values()))
        text: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 10}
        ax.annotate(panel_title, (0, 1), (0, 8), color=INK, **text)
    _draw_names(figure, bar_ys, block_ys)
    top = 1 - plotting.MARGIN / height
    figure.text(plotting.MARGIN / width, top, title, fontsize=15, weight="bold", va="top", color=INK)
    figure.text(plotting.MARGIN / width, plotting.MARGIN / height, note, va="bottom", color=plotting.GREY, fontsize=9)
    return figure


def _positions(panels: Mapping[str, Bars]) -> tuple[dict[tuple[str, str], float], dict[str, float], float]:
    """Return vertical positions of bars by block and provider, and of blocks by name, and the height, in lines."""
    keys = dict.fromkeys(key for bars in panels.values() for key in bars)
    bar_ys, block_ys, y = {}, {}, 0.0
    for block in dict.fromkeys(block for block, _ in keys):
        block_ys[block] = y + 0.5
        for key in (key for key in keys if key[0] == block):
            y += 1
            bar_ys[key] = y + 0.5
        y += 1.4
    return bar_ys, block_ys, y


def _draw_bars(ax: Axes, bars: Bars, bar_ys: Mapping[tuple[str, str], float], line: float | None) -> None:
    """Draw the bars of a panel at the vertical positions `bar_ys`, and a dashed line at `line` unless None."""
    ax.set_xlim(0, 1.22 * max(line or 0, *(bar.end for bar in bars.values()), 1e-9))
    if line is not None:
        ax.axvline(line, color=plotting.GREY, lw=0.8, ls=(0, (3, 2)), zorder=0)
    for key, bar in bars.items():
        y = bar_ys[key]
        ax.barh(y, bar.value, height=0.72, color=bar.color)
        if bar.whisker:
            ax.plot(bar.whisker, (y, y), color=INK, lw=1)
        if bar.mark is not None:
            ax.plot((bar.mark, bar.mark), (y - 0.46, y + 0.46), color=INK, lw=1.6)
        background = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}   # hides lines behind the number
        ax.annotate(
            bar.form(bar.value), (bar.end, y), (4, 0), textcoords="offset points", fontsize=8.5, va="center", color=INK,
            bbox=background,
        )   # fmt: skip


def _set_scale(ax: Axes, xlabel: str, *, fractions: bool) -> None:
    """Set label, ticks and frame of a panel's horizontal axis. fractions: whether values are shown as percentages."""
    ax.set_yticks([])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(RULE)
    ax.set_xlabel(xlabel, fontsize=8.5, color=plotting.GREY)
    ax.xaxis.set_major_formatter(lambda value, _: percent(value) if fractions else f"{value:g}")
    # Prune the last label, which would touch the next panel's first.
    ax.xaxis.set_major_locator(MaxNLocator(5, prune=None if fractions else "upper"))
    plotting.style_ticks(ax)


def _draw_names(figure: Figure, bar_ys: Mapping[tuple[str, str], float], block_ys: Mapping[str, float]) -> None:
    """Draw the names of blocks and providers left of all panels, at the vertical positions `block_ys` and `bar_ys`."""
    ax = figure.axes[0]
    width = figure.get_figwidth()
    align: dict[str, Any] = {"transform": blended_transform_factory(figure.transFigure, ax.transData), "va": "center"}
    for block, y in block_ys.items():
        ax.text(plotting.MARGIN / width, y, block, weight="bold", fontsize=9.5, color=INK, **align)
    for (_, label), y in bar_ys.items():
        ax.text((plotting.MARGIN + 0.1) / width, y, label, fontsize=9, color=INK, **align)


# ---- line charts -----------------------------------------------------------------------------------------------------


def draw_growth(ax: Axes, rows: Sequence[Row], providers: Sequence[Provider], ceiling: float | None) -> None:
    """Draw time against input size in MB for each provider, with the marks of all rows.

    If `ceiling`, a copy rate in GB/s, is given, the time of copying the bytes that the block moves is drawn too.
    """
    for i, provider in enumerate(providers):
        points = [
            (row.case.size / 1e6, row.seconds.median) for row in rows if row.provider == provider and row.seconds
        ]   # fmt: skip
        if points:
            marker = MARKERS[i % len(MARKERS)]
            style: dict[str, Any] = {"color": color(provider), "marker": marker, "ms": 6, "lw": 1.2, "mfc": PAPER}
            if provider.library == "attzoo":   # solid, small and in front, so that coinciding marks are both visible
                style |= {"ms": 4, "mfc": color(provider), "zorder": 3}
            ax.plot(*_means(points), **style | {"ms": 0})
            ax.plot(*zip(*points, strict=True), **style | {"lw": 0})
            ax.plot([], [], label=str(provider), **style)
    limits = {row.case.size / 1e6: row.moved / (1e9 * ceiling) for row in rows if ceiling and row.moved}
    if limits:
        dashed: dict[str, Any] = {"color": plotting.GREY, "lw": 1, "ls": (0, (4, 2))}
        ax.plot(*zip(*sorted(limits.items()), strict=True), label="limit", **dashed)


def _means(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the different sizes in (size, time) points, and the geometric mean of the times at each size."""
    logs_by_size: dict[float, list[float]] = {}
    for size, time in sorted(points):
        logs_by_size.setdefault(size, []).append(log(time))
    return list(logs_by_size), [exp(fmean(logs)) for logs in logs_by_size.values()]


def set_log_scales(ax: Axes, rows: Sequence[Row]) -> None:
    """Set the ticks of logarithmic axes: sizes in MB that are far enough apart, and times."""
    ticks: list[float] = []
    for size in sorted({row.case.size / 1e6 for row in rows}):
        if not ticks or size > 1.5 * ticks[-1]:
            ticks.append(size)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ticks, labels=[f"{size:.3g} MB" for size in ticks])
    ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter=_time_text)
    ax.grid(axis="y", color=RULE, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[:].set_color(RULE)
    plotting.style_ticks(ax)


def _time_text(value: float, _: object = None) -> str:
    """Return a time in seconds, the value of a tick, as text with a suitable unit."""
    scale, unit = unit_of(value)
    return f"{value * scale:g} {unit}"


def add_legend(figure: Figure) -> None:
    """Add one legend for all panels above them."""
    entries = [zip(*ax.get_legend_handles_labels()[::-1], strict=True) for ax in figure.axes]
    handles = {label: handle for pairs in entries for label, handle in pairs}
    style: dict[str, Any] = {"ncols": 4, "fontsize": 8.5, "frameon": False, "labelcolor": INK}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", **style)


# ---- SVG -------------------------------------------------------------------------------------------------------------


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element for an HTML page, with text as text and ids unique on the page.

    Colors and font are variables of the page's style sheet.
    """
    file = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "attzoo"}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for value, variable in STYLES.items():
        text = text.replace(value, f"var(--{variable})")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
    prefix = f"p{crc32(text.encode()):08x}-"
    return re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", text).replace("xlink:href", "href")
