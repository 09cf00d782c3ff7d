"""The pictures of a report: time and memory of blocks, time by input size, and throughput of networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Final

from matplotlib.figure import Figure

from attzoo import plotting

from .cases import BOTH
from .charts import INK, PALE, PAPER, Bar, add_legend, bar_chart, color, draw_growth, set_log_scales, svg
from .costs import FORMS, base_settings
from .figures import percent
from .runs import COPY, Row, Run
from .selection import NETWORKS, base_rows, blocks, environment, is_eager, machine_name, setting, throughput_fraction
from .throughput import PUBLISHED


@dataclass(frozen=True)
class Picture:
    """A picture for an HTML page: SVG, alternative text and caption."""

    svg: str
    alt: str
    caption: str


def pictures(runs: Sequence[Run]) -> dict[str, list[Picture]]:
    """Return the pictures by section name, for each machine from its latest run."""
    latest = {str(environment(run)): run for run in runs}
    by_section: dict[str, list[Picture]] = {}
    for run in latest.values():
        machine = f" {machine_name(run)}." if len(latest) > 1 else ""
        for section, run_pictures in _pictures(run).items():
            by_section.setdefault(section, []).extend(
                Picture(picture.svg, picture.alt, picture.caption + machine) for picture in run_pictures
            )
    return by_section


def _pictures(run: Run) -> dict[str, list[Picture]]:
    """Return the pictures of one run by section name."""
    rows = [row for row in run.rows if row.status == "timed"]
    eager = [row for row in rows if is_eager(row.provider)]
    by_section = {
        "alone": [
            *copies(eager),
            *peaks(eager),
            *(picture for mode in BOTH for picture in growth(eager, mode, run.ceilings)),
        ],
        "forms": [
            picture for test in FORMS.values() for picture in copies([row for row in rows if test(row.provider)])
        ],
        **{network: throughput(rows, network) for network in NETWORKS},
    }
    return {section: section_pictures for section, section_pictures in by_section.items() if section_pictures}


def copies(rows: Sequence[Row]) -> list[Picture]:
    """Return a list with a bar chart of each block's time at its base case, in copies of x; empty without rows."""
    panels = {mode: bars for mode in BOTH if (bars := _copies_bars(rows, mode))}
    if not panels:
        return []
    figure = bar_chart(panels, "times a copy of x", line=1)
    caption = (
        "Time of a block, as a multiple of the time to copy its input x once (dashed line), at the size that was timed "
        f"first: {base_settings(rows)}. The whiskers are quartiles. The thick mark is the time to move the least bytes "
        "that the block must read and write, at the speed of the copy."
    )
    return [Picture(svg(figure), "Bars: time of every provider of every block, as a multiple of a copy.", caption)]


def _copies_bars(rows: Sequence[Row], mode: str) -> dict[tuple[str, str], Bar]:
    """Return the bars of a mode: time in copies by block and provider."""
    return {
        (block, str(row.provider)): Bar(
            row.copies.median, color(row.provider),
            mark=row.moved / (2 * row.case.size) or None, whisker=(row.copies.low, row.copies.high),
        )
        for block in blocks(rows) for row in base_rows(rows, block)
        if row.case.mode == mode and row.copies and row.provider != COPY
    }   # fmt: skip


def peaks(rows: Sequence[Row]) -> list[Picture]:
    """Return a list with a bar chart of the memory of a training step, in multiples of x; empty without rows."""
    bars = {
        (block, str(row.provider)): Bar(
            row.peak / x, color(row.provider), mark=None if row.kept is None else row.kept / x
        )
        for block in blocks(rows) for row in base_rows(rows, block)
        if row.peak is not None and row.provider != COPY and (x := row.case.size)
    }   # fmt: skip
    if not bars:
        return []
    caption = (
        "Memory of a training step at the same sizes: the most in use at once besides inputs and weights, in multiples "
        "of the input x. The thick mark is the memory that autograd saves for the backward pass."
    )
    figure = bar_chart({"peak memory in training": bars}, "peak, in multiples of x")
    return [Picture(svg(figure), "Bars: peak memory of every provider of every block.", caption)]


def throughput(rows: Sequence[Row], network: str) -> list[Picture]:
    """Return a list with a chart of a network's throughput with each block, relative to none; empty without rows."""
    panels = {mode: bars for mode in BOTH if (bars := _throughput_bars(rows, network, mode))}
    if not panels:
        return []
    if network == "resnet50":
        measured_blocks = dict.fromkeys(block for bars in panels.values() for block, _ in bars)
        panels = {mode: bars | _published_bars(mode, measured_blocks) for mode, bars in panels.items()}
    figure = bar_chart(panels, "of the plain network's images per second", line=1)
    caption = f"Images per second of a {NETWORKS[network]} with each block, relative to the network without a block."
    if network == "resnet50":
        caption += " Pale: published in the ECA paper, for another machine, an RTX 2080 Ti."
    return [Picture(svg(figure), f"Bars: throughput of a {NETWORKS[network]} with each block.", caption)]


def _throughput_bars(rows: Sequence[Row], network: str, mode: str) -> dict[tuple[str, str], Bar]:
    """Return the bars of a mode: relative throughput by block and provider, in the network's first setting."""
    network_rows = [row for row in rows if row.case.network == network]
    return {
        (row.case.block, str(row.provider)): Bar(fraction, color(row.provider), percent)
        for row in network_rows
        if setting(row) == setting(network_rows[0]) and row.case.mode == mode and row.case.block != "none"
        and (fraction := throughput_fraction(row, rows))
    }   # fmt: skip


def _published_bars(mode: str, measured: Iterable[str]) -> dict[tuple[str, str], Bar]:
    """Return bars of the published throughput of these blocks, relative to no block, in a mode."""
    plain_throughput = PUBLISHED["none"][mode]
    fractions = {block: PUBLISHED[block][mode] / plain_throughput for block in measured if block in PUBLISHED}
    return {(block, "published, RTX 2080 Ti"): Bar(fraction, PALE, percent) for block, fraction in fractions.items()}


def cost(run: Run) -> bytes:
    """Return a summary plot as PNG: attzoo and its eager peers in copies of x, and in a ResNet-50 if that was timed.

    Raises ValueError if the run has no timed rows.
    """
    rows = [row for row in run.rows if row.status == "timed" and is_eager(row.provider)]
    panels = {f"{mode}, in copies of x": _copies_bars(rows, mode) for mode in BOTH}
    panels |= {"relative images/s of a ResNet-50": _throughput_bars(rows, "resnet50", "training")}
    panels = {title: bars for title, bars in panels.items() if bars}
    if not panels:
        raise ValueError("expected a run with timed rows to draw, got one without: pass another result file")
    return plotting.png(bar_chart(panels, "", title="What a block costs", note=_note(run, rows)), dpi=200)


def _note(run: Run, rows: Sequence[Row]) -> str:
    """Return the note below the summary plot: what it shows, the machine, the version of torch and the date."""
    thread = ", one thread; not comparable with a GPU's" if run.device == "cpu" else ""
    paragraphs = (
        f"Left: time as a multiple of copying the input x once, for x of {base_settings(rows)}; thick mark: the time "
        "to move the least bytes at the speed of the copy. Right: images per second in training, relative to the "
        "network without the block.",
        f"{machine_name(run)}{thread}; torch {environment(run)['torch']}, {run.date[:10]}.",
    )
    return "\n".join(line for paragraph in paragraphs for line in wrap(paragraph, 125))


GROWTH: Final = (
    "Time of {} against the size of x. Each mark is one shape; the lines join the geometric means over shapes of equal "
    "size. Dashed: the time to move the least bytes at the speed of a copy; inputs in a cache can be faster."
)


def growth(rows: Sequence[Row], mode: str, ceilings: Mapping[str, float]) -> list[Picture]:
    """Return a list with one chart, time against input size with a panel per block.

    The list is empty if no block was timed at several sizes.
    """
    series = {block: _series(rows, block, mode) for block in blocks(rows)}
    sizes = {block: {row.case.shapes for row in block_rows} for block, block_rows in series.items()}
    panels = {block: block_rows for block, block_rows in series.items() if len(sizes[block]) > 1}
    if not panels:
        return []
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(9, 0.5 + 2.6 * lines), facecolor=PAPER, layout="constrained")
    providers = list(dict.fromkeys(row.provider for block_rows in panels.values() for row in block_rows))
    for i, (block, block_rows) in enumerate(panels.items()):
        ax = figure.add_subplot(lines, columns, i + 1, facecolor="none", xscale="log", yscale="log")
        draw_growth(ax, block_rows, providers, ceilings.get("copy GB/s"))
        set_log_scales(ax, block_rows)
        ax.set_title(block, fontsize=9.5, weight="bold", loc="left", color=INK)
    add_legend(figure)
    alt = f"Lines: time of {mode} against the size of the input, per block."
    return [Picture(svg(figure), alt, GROWTH.format(mode))]


def _series(rows: Sequence[Row], block: str, mode: str) -> list[Row]:
    """Return the rows that differ from the block's base case only in size."""
    base_row = next(iter(base_rows(rows, block)), None)
    if base_row is None:
        return []
    block_rows = [row for row in rows if (row.case.block, row.case.network, row.case.mode) == (block, None, mode)]
    return [row for row in block_rows if row.provider != COPY and _all_but_size(row) == _all_but_size(base_row)]


def _all_but_size(row: Row) -> tuple[object, ...]:
    """Return what rows of one line have in common: dtype, layout, clock, rank, and which inputs have x's size."""
    shapes = row.case.shapes
    return row.case.dtype, row.case.layout, row.clock, len(shapes[0]), *(shape[2:] == shapes[0][2:] for shape in shapes)
