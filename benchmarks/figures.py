"""Format numbers for a report: three significant digits, a suitable unit, quartiles in brackets."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10
from typing import Final

from .runs import Row
from .timer import Spread

UNITS: Final = ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (float("inf"), 1.0, "s"))   # upper limit in s, units per s, unit
MIB: Final = 2**20
DASH: Final = "\N{EN DASH}"   # between the ends of a range


def times(value: float) -> str:
    """Format a number with three significant digits, or two decimals from 0.1 to 1, without an exponent."""
    rounded = float(f"{value:.2e}")
    if not rounded:
        return "0"
    order = floor(log10(abs(rounded)))
    return f"{value:,.{2 if order == -1 else max(0, 2 - order)}f}"


def percent(fraction: float) -> str:
    """Format a fraction as a percentage."""
    return f"{100 * fraction:.0f} %"


def count(n: int, noun: str) -> str:
    """Format a number with a noun, in the plural unless n is 1."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def quartiles(spread: Spread | None) -> str:
    """Format the median, with the quartiles in brackets; "" for None."""
    return f"{times(spread.median)} ({times(spread.low)}{DASH}{times(spread.high)})" if spread else ""


def seconds(spread: Spread | None) -> str:
    """Format quartiles of seconds in a unit that suits the median; "" for None."""
    if spread is None:
        return ""
    scale, unit = unit_of(spread.median)
    scaled = Spread(spread.low * scale, spread.median * scale, spread.high * scale)
    return quartiles(scaled).replace(" ", f" {unit} ", 1)


def unit_of(value: float) -> tuple[float, str]:
    """Return the factor from seconds to a unit that suits this many seconds, and the unit."""
    return next((scale, unit) for limit, scale, unit in UNITS if value < limit)


def value_range(values: Sequence[float]) -> str:
    """Format the range of some values; "" without values."""
    if not values:
        return ""
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}{DASH}{high}"


def memory(size: int | None, x: int | None) -> str:
    """Format bytes in MiB, and as a multiple of the first input's bytes `x` if given; "" for None."""
    if size is None:
        return ""
    return _small(size / MIB) + (f" ({_small(size / x)} x)" if x else "")


def _small(value: float) -> str:
    """Format a number with three significant digits, or two decimals below 0.1."""
    if 0 < value < 0.1:
        return "<0.01" if value < 0.01 else f"{value:.2f}"
    return times(value)


def speed(row: Row) -> float | None:
    """Return bytes per second of a row: the least bytes to move (`Row.moved`) / its median time; None if unknown."""
    return row.moved / row.seconds.median if row.seconds and row.seconds.median and row.moved else None


def rate(row: Row, ceiling: float | None) -> str:
    """Format a row's speed in GB/s, and as a percentage of the machine's copy rate `ceiling` in GB/s if given."""
    bytes_per_second = speed(row)
    if bytes_per_second is None:
        return ""
    gigabytes = bytes_per_second / 1e9
    return times(gigabytes) + (f" ({percent(gigabytes / ceiling)})" if ceiling else "")
