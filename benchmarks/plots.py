"""The pictures of a report: what blocks cost in time and memory, how that grows, what it does to a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from math import exp, log
from statistics import fmean
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from attzoo import look

from .cases import BOTH
from .figures import percent, times, unit_of
from .picking import NETWORKS, base, blocks, eager, fraction, name, place, setting
from .runs import COPY, Provider, Row, Run
from .sections import FORMS, PUBLISHED, firsts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, RULE, PAPER, PALE = "#1b1b1c", "#dcdcdd", "#ffffff", "#c9cdd4"
COLORS: Final = {   # of whom; colour-blind readers tell them apart, and every bar has its name beside it
    "attzoo": look.COLORS["torch"], "timm": look.COLORS["keras"], "torchvision": "#d99a1c", "MONAI": "#2c9c76",
}   # fmt: skip
OTHER: Final = "#8b8b8c"
STYLES: Final = {   # in a page, a colour is a variable of its style sheet, so that one picture serves light and dark
    INK: "ink", look.GREY: "grey", RULE: "rule", PAPER: "paper", PALE: "pale", OTHER: "other",
    **{color: who for who, color in COLORS.items()},
}   # fmt: skip
LINE: Final = 0.235     # inches, of a bar and its name
MARKERS: Final = "osD^vP"


@dataclass(frozen=True)
class Picture:
    """A picture for a page, its words for who cannot see it, and what stands under it."""

    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Bar:
    """A bar: its length, which is written at its end, and maybe a stroke across it and the ends of a whisker."""

    value: float
    color: str
    form: Callable[[float], str] = times
    stroke: float | None = None
    whisker: tuple[float, float] | None = None

    @property
    def end(self) -> float:
        """Where all of it ends."""
        return max(self.value, self.stroke or 0.0, *(self.whisker or ()))


Bars = Mapping[tuple[str, str], Bar]   # block, provider -> bar


# ---- a run's pictures ------------------------------------------------------------------------------------------------


def pictures(runs: Sequence[Run]) -> dict[str, list[Picture]]:
    """Name of a section -> its pictures, of every machine: of several runs of one, the last that has them."""
    latest = {str(place(run)): run for run in runs}
    drawn: dict[str, list[Picture]] = {}
    for run in latest.values():
        where = f" {name(run)}." if len(latest) > 1 else ""
        for key, found in _pictures(run).items():
            drawn.setdefault(key, []).extend(Picture(p.svg, p.alt, p.caption + where) for p in found)
    return drawn


def _pictures(run: Run) -> dict[str, list[Picture]]:
    rows = [row for row in run.rows if row.status == "timed"]
    plain = [row for row in rows if eager(row.provider)]
    drawn = {
        "alone": [*copies(plain), *peaks(plain), *(p for mode in BOTH for p in sizes(plain, mode, run.ceilings))],
        "forms": [p for test in FORMS.values() for p in copies([row for row in rows if test(row.provider)])],
        **{key: throughput(rows, key) for key in NETWORKS},
    }
    return {key: found for key, found in drawn.items() if found}


def copies(rows: Sequence[Row]) -> list[Picture]:
    """What each block costs at its base case, in times of copying its input."""
    panels = {mode: bars for mode in BOTH if (bars := _copies(rows, mode))}
    if not panels:
        return []
    figure = ladder(panels, "times a copy of x", line=1)
    caption = (
        "What a block costs, in times of copying its input x once (dashed), at the size that was timed first: "
        f"{firsts(rows)}. Whiskers are quartiles; a stroke across a bar is what moving the bytes that cannot be "
        "avoided would take."
    )
    return [Picture(svg(figure), "Bars: time of every provider of every block, as a multiple of a copy.", caption)]


def _copies(rows: Sequence[Row], mode: str) -> dict[tuple[str, str], Bar]:
    return {
        (block, str(row.provider)): Bar(
            row.copies.median, color(row.provider),
            stroke=row.moved / (2 * row.case.size) or None, whisker=(row.copies.low, row.copies.high),
        )
        for block in blocks(rows) for row in base(rows, block)
        if row.case.mode == mode and row.copies and row.provider != COPY
    }   # fmt: skip


def peaks(rows: Sequence[Row]) -> list[Picture]:
    """What a training step needs besides inputs and weights, in multiples of the input."""
    bars = {
        (block, str(row.provider)): Bar(
            row.peak / x, color(row.provider), stroke=None if row.kept is None else row.kept / x
        )
        for block in blocks(rows) for row in base(rows, block)
        if row.peak is not None and row.provider != COPY and (x := row.case.size)
    }   # fmt: skip
    if not bars:
        return []
    caption = (
        "Memory of a training step at the same sizes: the most that is alive at once besides inputs and weights, in "
        "multiples of the input x. The stroke across a bar is what autograd keeps for the backward pass."
    )
    figure = ladder({"peak memory in training": bars}, "peak, in multiples of x")
    return [Picture(svg(figure), "Bars: peak memory of every provider of every block.", caption)]


def throughput(rows: Sequence[Row], key: str) -> list[Picture]:
    """What is left of a network's images per second with each block in it."""
    panels = {mode: bars for mode in BOTH if (bars := _throughput(rows, key, mode))}
    if not panels:
        return []
    if key == "resnet50":
        measured = dict.fromkeys(block for bars in panels.values() for block, _ in bars)
        panels = {mode: bars | _published(mode, measured) for mode, bars in panels.items()}
    figure = ladder(panels, "of the plain network's images per second", line=1)
    caption = f"What each block leaves of a plain {NETWORKS[key]}'s images per second."
    if key == "resnet50":
        caption += " Pale: as the ECA paper published it, on another machine, an RTX 2080 Ti."
    return [Picture(svg(figure), f"Bars: throughput of a {NETWORKS[key]} with each block.", caption)]


def _throughput(rows: Sequence[Row], key: str, mode: str) -> dict[tuple[str, str], Bar]:
    found = [row for row in rows if row.case.network == key]
    return {
        (row.case.block, str(row.provider)): Bar(part, color(row.provider), percent)
        for row in found
        if setting(row) == setting(found[0]) and row.case.mode == mode and row.case.block != "none"
        and (part := fraction(row, rows))
    }   # fmt: skip


def _published(mode: str, measured: Iterable[str]) -> dict[tuple[str, str], Bar]:
    plain = PUBLISHED["none"][mode]
    parts = {block: PUBLISHED[block][mode] / plain for block in measured if block in PUBLISHED}
    return {(block, "published, RTX 2080 Ti"): Bar(part, PALE, percent) for block, part in parts.items()}


def cost(run: Run) -> bytes:
    """One picture for a README, PNG: attzoo and its eager peers in copies, and in a ResNet-50 where that was timed."""
    rows = [row for row in run.rows if row.status == "timed" and eager(row.provider)]
    panels = {f"{mode}, in copies of x": _copies(rows, mode) for mode in BOTH}
    panels |= {"left of a ResNet-50's images/s": _throughput(rows, "resnet50", "training")}
    panels = {title: bars for title, bars in panels.items() if bars}
    if not panels:
        raise ValueError("expected a run with timed rows to draw, got one without")
    return look.png(ladder(panels, "", title="What a block costs", note=_note(run, rows)), dpi=200)


def _note(run: Run, rows: Sequence[Row]) -> str:
    thread = ", one thread; not comparable with a GPU's" if run.device == "cpu" else ""
    said = (
        f"Left: time as a multiple of copying the input x once, for x of {firsts(rows)}; black stroke: what moving "
        "the bytes that cannot be avoided would take. Right: images per second in training, as a part of the network's "
        "without the block.",
        f"{name(run)}{thread}; torch {place(run)['torch']}, {run.date[:10]}.",
    )
    return "\n".join(line for paragraph in said for line in wrap(paragraph, 125))


# ---- drawing ---------------------------------------------------------------------------------------------------------


def color(provider: Provider) -> str:
    """Whose bar it is."""
    return COLORS.get(provider.library, OTHER)


def ladder(
    panels: Mapping[str, Bars], xlabel: str, *, line: float | None = None, title: str = "", note: str = ""
) -> Figure:
    """Bars under the names of their blocks, panels side by side. `line`: a value marked in every panel."""
    places, heads, end = _places(panels)
    left = 0.35 + max(0.085 * max(map(len, heads)) - 0.1, 0.074 * max(len(label) for _, label in places))
    above, below = 0.45 + 0.4 * bool(title), 0.55 + 0.17 * len(note.splitlines())
    width, height = 9.0, above + below + LINE * end
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    each = (width - left - look.MARGIN) / len(panels)
    for i, (head, bars) in enumerate(panels.items()):
        box = ((left + i * each) / width, below / height, (each - 0.2) / width, LINE * end / height)
        ax = figure.add_axes(box, facecolor="none", ylim=(end, 0))
        _bars(ax, bars, places, line)
        _scale(ax, xlabel, parts=any(bar.form is percent for bar in bars.values()))
        ax.annotate(head, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=10, color=INK)
    _names(figure, places, heads)
    figure.text(look.MARGIN / width, 1 - look.MARGIN / height, title, fontsize=15, weight="bold", va="top", color=INK)
    figure.text(look.MARGIN / width, look.MARGIN / height, note, va="bottom", color=look.GREY, fontsize=9)
    return figure


def _places(panels: Mapping[str, Bars]) -> tuple[dict[tuple[str, str], float], dict[str, float], float]:
    """Where each bar and each block's name stand, in lines from the top, and where all end."""
    keys = dict.fromkeys(key for bars in panels.values() for key in bars)
    places, heads, at = {}, {}, 0.0
    for block in dict.fromkeys(block for block, _ in keys):
        heads[block] = at + 0.5
        for key in (key for key in keys if key[0] == block):
            at += 1
            places[key] = at + 0.5
        at += 1.4
    return places, heads, at


def _bars(ax: Axes, bars: Bars, places: Mapping[tuple[str, str], float], line: float | None) -> None:
    ax.set_xlim(0, 1.22 * max(line or 0, *(bar.end for bar in bars.values()), 1e-9))
    if line is not None:
        ax.axvline(line, color=look.GREY, lw=0.8, ls=(0, (3, 2)), zorder=0)
    for key, bar in bars.items():
        y = places[key]
        ax.barh(y, bar.value, height=0.72, color=bar.color)
        if bar.whisker:
            ax.plot(bar.whisker, (y, y), color=INK, lw=1)
        if bar.stroke is not None:
            ax.plot((bar.stroke, bar.stroke), (y - 0.46, y + 0.46), color=INK, lw=1.6)
        clear = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}   # of lines behind the number
        ax.annotate(
            bar.form(bar.value), (bar.end, y), (4, 0), textcoords="offset points", fontsize=8.5, va="center", color=INK,
            bbox=clear,
        )   # fmt: skip


def _scale(ax: Axes, xlabel: str, *, parts: bool) -> None:
    ax.set_yticks([])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(RULE)
    ax.set_xlabel(xlabel, fontsize=8.5, color=look.GREY)
    ax.xaxis.set_major_formatter(lambda value, _: percent(value) if parts else f"{value:g}")
    ax.xaxis.set_major_locator(MaxNLocator(5, prune=None if parts else "upper"))   # the last would touch a neighbour's
    look.small(ax)


def _names(figure: Figure, places: Mapping[tuple[str, str], float], heads: Mapping[str, float]) -> None:
    """The names of blocks and providers, left of all panels."""
    ax = figure.axes[0]
    width = figure.get_figwidth()
    where: dict[str, Any] = {"transform": blended_transform_factory(figure.transFigure, ax.transData), "va": "center"}
    for block, y in heads.items():
        ax.text(look.MARGIN / width, y, block, weight="bold", fontsize=9.5, color=INK, **where)
    for (_, label), y in places.items():
        ax.text((look.MARGIN + 0.1) / width, y, label, fontsize=9, color=INK, **where)


def sizes(rows: Sequence[Row], mode: str, ceilings: Mapping[str, float]) -> list[Picture]:
    """Time against the size of the input, one panel per block, with the time that its bytes must take."""
    series = {block: _series(rows, block, mode) for block in blocks(rows)}
    panels = {block: found for block, found in series.items() if len({row.case.shapes for row in found}) > 1}
    if not panels:
        return []
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(9, 0.5 + 2.6 * lines), facecolor=PAPER, layout="constrained")
    providers = list(dict.fromkeys(row.provider for found in panels.values() for row in found))
    for i, (block, found) in enumerate(panels.items()):
        ax = figure.add_subplot(lines, columns, i + 1, facecolor="none", xscale="log", yscale="log")
        _grown(ax, found, providers, ceilings.get("copy GB/s"))
        _logs(ax, found)
        ax.set_title(block, fontsize=9.5, weight="bold", loc="left", color=INK)
    _legend(figure)
    alt = f"Lines: time of {mode} against the size of the input, per block."
    return [Picture(svg(figure), alt, GROWTH.format(mode))]


def _legend(figure: Figure) -> None:
    """One for all panels."""
    found = [zip(*ax.get_legend_handles_labels()[::-1], strict=True) for ax in figure.axes]
    handles = {label: handle for pairs in found for label, handle in pairs}
    how: dict[str, Any] = {"ncols": 4, "fontsize": 8.5, "frameon": False, "labelcolor": INK}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", **how)


GROWTH: Final = (
    "Time of {} against the size of x. Every mark is one shape; lines join the means of shapes of one size, whose "
    "times differ where their shapes do. Dashed: what the bytes that cannot be avoided would take at the speed of a "
    "copy; in a cache it can be less."
)


def _series(rows: Sequence[Row], block: str, mode: str) -> list[Row]:
    """The rows that differ from a block's base case in nothing but their size."""
    first = next(iter(base(rows, block)), None)
    if first is None:
        return []
    alone = [row for row in rows if (row.case.block, row.case.network, row.case.mode) == (block, None, mode)]
    return [row for row in alone if row.provider != COPY and _kind(row) == _kind(first)]


def _kind(row: Row) -> tuple[object, ...]:
    """All but the size: the inputs' rank and whether they are equally large among it."""
    shapes = row.case.shapes
    return row.case.dtype, row.case.layout, row.clock, len(shapes[0]), *(shape[2:] == shapes[0][2:] for shape in shapes)


def _grown(ax: Axes, rows: Sequence[Row], providers: Sequence[Provider], ceiling: float | None) -> None:
    for i, provider in enumerate(providers):
        found = [row for row in rows if row.provider == provider and row.seconds]
        points = [(row.case.size / 1e6, row.seconds.median) for row in found if row.seconds]
        if points:
            mark = MARKERS[i % len(MARKERS)]
            style: dict[str, Any] = {"color": color(provider), "marker": mark, "ms": 6, "lw": 1.2, "mfc": PAPER}
            if provider.library == "attzoo":   # solid and in front, so that both are seen where they coincide
                style |= {"ms": 4, "mfc": color(provider), "zorder": 3}
            ax.plot(*_means(points), **style | {"ms": 0})
            ax.plot(*zip(*points, strict=True), **style | {"lw": 0})
            ax.plot([], [], label=str(provider), **style)
    limits = {row.case.size / 1e6: row.moved / (1e9 * ceiling) for row in rows if ceiling and row.moved}
    if limits:
        dashed: dict[str, Any] = {"color": look.GREY, "lw": 1, "ls": (0, (4, 2))}
        ax.plot(*zip(*sorted(limits.items()), strict=True), label="limit", **dashed)


def _means(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The geometric mean of the times at each size."""
    of_size: dict[float, list[float]] = {}
    for x, time in sorted(points):
        of_size.setdefault(x, []).append(log(time))
    return list(of_size), [exp(fmean(logs)) for logs in of_size.values()]


def _logs(ax: Axes, rows: Sequence[Row]) -> None:
    apart: list[float] = []
    for x in sorted({row.case.size / 1e6 for row in rows}):
        if not apart or x > 1.5 * apart[-1]:
            apart.append(x)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(apart, labels=[f"{x:.3g} MB" for x in apart])
    ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter=_time)
    ax.grid(axis="y", color=RULE, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[:].set_color(RULE)
    look.small(ax)


def _time(value: float, _: object = None) -> str:
    scale, unit = unit_of(value)
    return f"{value * scale:g} {unit}"


def svg(figure: Figure) -> str:
    """A figure as SVG to stand in a page: its text is text, its colours and font are the page's, its ids its own."""
    file = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "attzoo"}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for value, variable in STYLES.items():
        drawn = drawn.replace(value, f"var(--{variable})")
    drawn = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", drawn)
    own = f"p{crc32(drawn.encode()):08x}-"
    return re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{own}", drawn).replace("xlink:href", "href")
