"""The report's sections on the suite "blocks": every block at each size, alone and beside its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .cases import BOTH
from .costs import with_status
from .figures import memory, quartiles
from .runs import Row
from .selection import Entry, blocks, clock_name, is_eager, pairs
from .tables import Section, Table

SUITE: Final = "blocks"
COSTS: Final = ("MiB moved", "copies")
RATIOS: Final = ("ratio", "control", "verdict")
Lines = Callable[[str, str, Mapping[str, Row]], list[list[str]]]   # run, block, rows by mode -> lines of a table


def block_costs(entries: Sequence[Entry]) -> Section:
    """Return the section on the costs of every block with its default arguments, a group for each size."""
    text = (
        "Every block with its default arguments. MACs are multiply-adds of the linear maps for one sample. MiB moved "
        "is what PyTorch's operators read and write in one call, and in multiples of x, as if nothing were in a cache: "
        "each operator counts its inputs and results once. Copying x moves 2 x. A block reads each input and writes y "
        "at least once, which is 2 x, or 3 x with two inputs; in a training step these are 5 x and 8 x."
    )
    ours = [entry for entry in entries if entry.row.provider.library == "attzoo" and entry.row.case.variant is None]
    return _section("What each block costs at each size", text, ("parameters", "MACs"), COSTS, ours, _cost_lines)


def beside_references(entries: Sequence[Entry]) -> Section:
    """Return the section that compares every block with the block of another library, a group for each size."""
    text = (
        "Every block in the variant that another library has too, with the same weights. Ratio is attzoo's time "
        "divided by that library's, below 1 where attzoo is faster. Control is the ratio of that library's block to "
        "itself: its distance from 1 is noise."
    )
    paired = [entry for entry in entries if pairs([entry.row])]
    return _section("Each block beside another library", text, ("variant", "beside"), RATIOS, paired, _ratio_lines)


def _section(
    title: str, text: str, names: Sequence[str], columns: Sequence[str], entries: Sequence[Entry], lines_of: Lines
) -> Section:
    """Return a section with a table of the blocks alone, not in networks, that eager PyTorch ran in the suite `SUITE`.

    The table has a group for each size, and in it the lines of each block in each run. Other entries are left out. If
    none is left, the section is empty.

    Args:
        title: the section's title.
        text: the explanation above the table.
        names: heads of the columns after the block's name.
        columns: heads of the columns that the table has once for inference and once for training.
        entries: the rows of all runs.
        lines_of: returns the lines of a block in a run, see `Lines`.
    """
    chosen = [e for e in entries if e.run.suite == SUITE and is_eager(e.row.provider) and not e.row.case.network]
    head = ["run", "block", *names, *(f"{mode}: {column}" for mode in BOTH for column in columns)]
    groups = [
        (size, [line for key in _keys(group) for line in lines_of(*key, _by_mode(group, *key))])
        for size in dict.fromkeys(_size(entry.row) for entry in chosen)
        if (group := [entry for entry in chosen if _size(entry.row) == size])
    ]
    return Section(title, [text, Table(head, groups)] if groups else [])


def _size(row: Row) -> str:
    """Return the title of a row's group: the shape of x, dtype, layout and clock."""
    shape = "x".join(map(str, row.case.shapes[0]))
    return f"{shape}, {row.case.dtype}, {row.case.layout}, {clock_name(row.clock)}"


def _keys(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Return the run's label and the block's name of each line of a group."""
    labels = dict.fromkeys(entry.label for entry in entries)
    return [(label, block) for block in blocks(entry.row for entry in entries) for label in labels]


def _by_mode(entries: Sequence[Entry], label: str, block: str) -> dict[str, Row]:
    """Return the rows of a run and block by mode."""
    rows = [entry.row for entry in entries if (entry.label, entry.row.case.block) == (label, block)]
    return {row.case.mode: row for row in rows}


def _cost_lines(label: str, block: str, rows: Mapping[str, Row]) -> list[list[str]]:
    """Return the line of a block's costs; none without rows."""
    cells = []
    for row in map(rows.get, BOTH):
        cells += [memory(row.traffic, row.case.size), with_status(row, quartiles(row.copies))] if row else ["", ""]
    return [[label, block, f"{row.parameters:,}", _macs(row), *cells] for row in [*rows.values()][:1]]


def _macs(row: Row) -> str:
    """Return the multiply-adds of the forward pass for one sample; "" unless the row is of inference."""
    return f"{row.flops // 2 // row.case.shapes[0][0]:,}" if row.case.mode == "inference" else ""


def _ratio_lines(label: str, block: str, rows: Mapping[str, Row]) -> list[list[str]]:
    """Return the line that compares a block with another library's; none without rows."""
    cells = []
    for row in map(rows.get, BOTH):
        compared = pairs([row]) if row else []
        cells += [quartiles(compared[0].ratio), quartiles(row.control), compared[0].verdict] if row else [""] * 3
    return [[label, block, pair.case.variant or "", pair.peer, *cells] for pair in pairs([*rows.values()][:1])]
