"""The report's tables that compare attzoo with its peers over all cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .cases import BOTH
from .figures import value_range
from .selection import NETWORKS, Entry, Pair, blocks, clock_name, pairs
from .tables import Section, Table


def comparison(entries: Sequence[Entry]) -> Section:
    """Return the section that compares attzoo with its eager peers, a row per block."""
    text = (
        "Ratios are attzoo's time divided by the peer's, below 1 where attzoo is faster: the range of the medians over "
        "all sizes, dtypes and layouts that were timed. Faster and slower count only differences beyond the noise."
    )
    table = comparison_table(entries, eager=True)
    return Section("attzoo beside its peers", [text, table] if table.groups else [])


def comparison_table(entries: Sequence[Entry], *, eager: bool) -> Table:
    """Return a table that compares attzoo with peers, with a line for each block, pair of providers and run.

    It has the pairs of eager providers if `eager`, else the other pairs, and a group per clock if there are several.
    """
    lines: dict[tuple[object, ...], list[Pair]] = {}
    for block in blocks(entry.row for entry in entries):
        for entry in entries:
            for pair in pairs([entry.row]):
                if pair.case.block == block and pair.eager is eager:
                    key = entry.label, pair.case.network, pair.case.variant, block, pair.ours, pair.peer, pair.clock
                    lines.setdefault(key, []).append(pair)
    headings = ["run", "block", "variant", "attzoo", "beside"]
    headings += [f"{mode}: {column}" for mode in BOTH for column in ("ratio", "verdict")]
    lines_by_clock = [(group[0].clock, [str(label), *_cells(group)]) for (label, *_), group in lines.items()]
    clocks = dict.fromkeys(clock for clock, _ in lines_by_clock)
    title_by_clock = {clock: clock_name(clock) if len(clocks) > 1 else None for clock in clocks}
    groups = [(title_by_clock[clock], [cells for c, cells in lines_by_clock if c == clock]) for clock in clocks]
    return Table(headings, groups)


def _cells(group: Sequence[Pair]) -> list[str]:
    """Return the table cells for pairs of one block and the same two providers: names, then the cells of each mode."""
    first_line = group[0]
    case = first_line.case
    subject = f"{NETWORKS.get(case.network, case.network)} with {case.block}" if case.network else case.block
    cells = [cell for mode in BOTH for cell in _mode_cells(group, mode)]
    return [subject, case.variant or "", str(first_line.ours), first_line.peer, *cells]


def _mode_cells(group: Sequence[Pair], mode: str) -> list[str]:
    """Return two cells for pairs in one mode: the range of steady time ratios, and counts of the verdicts."""
    pairs_of_mode = [pair for pair in group if pair.case.mode == mode]
    steady_ratios = [pair.ratio.median for pair in pairs_of_mode if pair.verdict != "unsteady"]
    return [value_range(steady_ratios), verdict_counts(pairs_of_mode)]


def verdict_counts(group: Sequence[Pair]) -> str:
    """Return how many pairs have each verdict, such as "faster in 2, same in 1"."""
    counts = Counter(pair.verdict for pair in group)
    order = [*("faster", "same", "slower", "unsteady"), *counts]
    return ", ".join(f"{verdict} in {counts[verdict]}" for verdict in dict.fromkeys(order) if counts[verdict])
