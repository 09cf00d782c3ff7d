"""Format tables as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def text_table(rows: Sequence[Sequence[Any]], numbers: Collection[str] = ()) -> str:
    """Return a table as text with aligned columns. Integers get thousands separators, and None becomes "-".

    Args:
        rows: the cells; the first row has the headings.
        numbers: headings of the columns that are aligned on the right.

    """
    texts = [["-" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    is_number = [heading in numbers for heading in rows[0]]
    lines = []
    for row in texts:
        cells = zip(row, widths, is_number, strict=True)
        lines.append("  ".join(cell.rjust(n) if right else cell.ljust(n) for cell, n, right in cells).rstrip())
    return "\n".join(lines)
