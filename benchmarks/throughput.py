"""The report's sections on the throughput of networks with each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .cases import BOTH
from .costs import with_status
from .figures import percent, times
from .runs import Row
from .selection import NETWORKS, Entry, blocks, clock_name, setting, shapes_text, throughput_fraction
from .tables import Section, Table

ECA_PAPER: Final = "Wang et al., ECA-Net, CVPR 2020, https://arxiv.org/abs/1910.03151v4, Table 3"
PUBLISHED: Final = {   # images per second of ResNet-50 in that table, on an RTX 2080 Ti: block -> mode -> number
    "none": {"training": 1024, "inference": 1855},
    "se": {"training": 759, "inference": 1620},
    "cbam": {"training": 472, "inference": 1213},
    "eca": {"training": 785, "inference": 1805},
}


def network(entries: Sequence[Entry], name: str) -> Section:
    """Return the section on network `name` of NETWORKS: images per second with each block, and relative to no block."""
    network_entries = [entry for entry in entries if entry.row.case.network == name and entry.row.case.mode in BOTH]
    headings = ["run", "block", "provider"]
    headings += [f"{mode}: {column}" for mode in BOTH for column in ("images/s", "of plain")]
    published = PUBLISHED if name == "resnet50" else {}
    headings += [f"published {mode}: {column}" for mode in BOTH for column in ("images/s", "of plain") if published]
    groups = [
        (_title(network_entries, chosen), _lines(network_entries, chosen, published))
        for chosen in dict.fromkeys(setting(entry.row) for entry in network_entries)
    ]
    text = [f"Images per second of a {NETWORKS[name]} with the block at every position for one, and as a percentage of "
            "the same network without a block."]
    if published:
        text.append(f"Published: {ECA_PAPER}, on an RTX 2080 Ti. Machine, software and batch size differ there: "
                    "compare the percentages of the plain network, with care, and not the images per second.")
    parts: list[str | Table] = [*text, Table(headings, groups)] if network_entries else []
    return Section(f"What a block costs a {NETWORKS[name]}", parts, name)


def _title(entries: Sequence[Entry], chosen_setting: tuple[object, ...]) -> str:
    """Return the title of the lines of a setting, from its first row: shapes, dtype, layout and clock."""
    row = next(entry.row for entry in entries if setting(entry.row) == chosen_setting)
    return f"{shapes_text(row.case)}, {row.case.dtype}, {row.case.layout}, {clock_name(row.clock)}"


def _lines(
    entries: Sequence[Entry], chosen_setting: tuple[object, ...], published: Mapping[str, Mapping[str, int]]
) -> list[list[str]]:
    """Return the lines of the table for one setting, sorted by run and block, the network without a block first.

    Args:
        entries: the rows of all settings.
        chosen_setting: the setting of the lines.
        published: published images per second by block, "none" for no block, and by mode; empty without such columns.

    """
    lines = []
    group = [entry for entry in entries if setting(entry.row) == chosen_setting]
    order = ["none", *(block for block in blocks(entry.row for entry in group) if block != "none")]
    keys = dict.fromkeys((entry.label, entry.row.case.block, entry.row.provider) for entry in group)
    for label, block, provider in sorted(keys, key=lambda key: (key[0], order.index(key[1]))):
        rows = [entry.row for entry in group if entry.label == label]
        by_mode = {row.case.mode: row for row in rows if (row.case.block, row.provider) == (block, provider)}
        cells = [cell for mode in BOTH for cell in _cells(by_mode.get(mode), rows)]
        rates = published.get(block, {})
        cells += [c for mode in BOTH if published for c in _published_cells(rates.get(mode), published["none"][mode])]
        lines.append([label, block, str(provider), *cells])
    return lines


def _cells(row: Row | None, rows: Sequence[Row]) -> tuple[str, str]:
    """Return a row's images per second, and these relative to the network without a block among `rows`, as text."""
    if row is None:
        return "", ""
    if row.seconds is None:
        return row.status, ""
    fraction = throughput_fraction(row, rows)
    images = times(row.case.shapes[0][0] / row.seconds.median)
    return with_status(row, images), percent(fraction) if fraction else ""


def _published_cells(number: int | None, plain: int) -> tuple[str, str]:
    """Return the published images per second, and these relative to `plain`, those without a block, as text."""
    return (str(number), percent(number / plain)) if number else ("", "")
