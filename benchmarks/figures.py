"""Numbers as a reader wants them: three digits, a unit that suits, quartiles in brackets."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10
from typing import Final

from .runs import Row
from .timer import Spread

UNITS: Final = ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (float("inf"), 1.0, "s"))   # below this many seconds, times this
MIB: Final = 2**20
DASH: Final = "\N{EN DASH}"   # between the ends of a range


def times(value: float) -> str:
    """Three digits, two between 0.1 and 1 as for a ratio, without an exponent."""
    rounded = float(f"{value:.2e}")
    if not rounded:
        return "0"
    order = floor(log10(abs(rounded)))
    return f"{value:,.{2 if order == -1 else max(0, 2 - order)}f}"


def percent(part: float) -> str:
    """A part of a whole."""
    return f"{100 * part:.0f} %"


def count(n: int, what: str) -> str:
    """A number of things."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def quartiles(spread: Spread | None) -> str:
    """The median, and the quartiles in brackets."""
    return f"{times(spread.median)} ({times(spread.low)}{DASH}{times(spread.high)})" if spread else ""


def seconds(spread: Spread | None) -> str:
    """A time in the unit that suits its median."""
    if spread is None:
        return ""
    scale, unit = unit_of(spread.median)
    scaled = Spread(spread.low * scale, spread.median * scale, spread.high * scale)
    return quartiles(scaled).replace(" ", f" {unit} ", 1)


def unit_of(value: float) -> tuple[float, str]:
    """What to multiply seconds by, and what they are then."""
    return next((scale, unit) for below, scale, unit in UNITS if value < below)


def spans(values: Sequence[float]) -> str:
    """From the least to the most."""
    if not values:
        return ""
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}{DASH}{high}"


def memory(size: int | None, x: int | None) -> str:
    """Bytes in MiB, and in multiples of the first input's where those are given."""
    if size is None:
        return ""
    return _small(size / MIB) + (f" ({_small(size / x)} x)" if x else "")


def _small(value: float) -> str:
    """The number, to a hundredth where it is less than a tenth."""
    if 0 < value < 0.1:
        return "<0.01" if value < 0.01 else f"{value:.2f}"
    return times(value)


def speed(row: Row) -> float | None:
    """Bytes per second that a row moved, of those that it could not avoid."""
    return row.moved / row.seconds.median if row.seconds and row.seconds.median and row.moved else None


def rate(row: Row, ceiling: float | None) -> str:
    """That in GB/s, and as a part of what this machine's memory can copy."""
    bytes_per_second = speed(row)
    if bytes_per_second is None:
        return ""
    gigabytes = bytes_per_second / 1e9
    return times(gigabytes) + (f" ({percent(gigabytes / ceiling)})" if ceiling else "")
