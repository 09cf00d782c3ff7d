"""The report that `attach`, `swap` and `detach` return; printed, it is a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ..moved import warn_deprecated
from ..tables import text_table

NUMBERS: Final = ("channels", "parameters", "MACs")   # right-aligned columns of the table


@dataclass(frozen=True)
class Entry:
    """A block in a network.

    Args:
        path: path of the block in the network.
        block: its name in the registry.
        channels: number of channels of its first input.
        parameters: number of trainable parameters.
        macs: multiply-adds for one sample; None if its spatial size is unknown.
        weights: the origin of its weights: "initial", or the library of the module that it replaced.

    """

    path: str
    block: str
    channels: int
    parameters: int
    macs: int | None = None
    weights: str = "initial"


@dataclass(frozen=True)
class Report:
    """The blocks that were added to a network or removed from it. `print` shows them as a table.

    Attributes:
        model: the network after the change.
        entries: the blocks, in their order in the network.

    """

    model: Any = field(repr=False)
    entries: tuple[Entry, ...]

    @property
    def places(self) -> tuple[Entry, ...]:
        """Deprecated name of `entries`. Reading it warns with DeprecationWarning."""
        warn_deprecated("Report.places", "Report.entries")
        return self.entries

    @property
    def parameters(self) -> int:
        """Number of trainable parameters of all blocks."""
        return sum(entry.parameters for entry in self.entries)

    @property
    def macs(self) -> int | None:
        """Multiply-adds of all blocks for one sample; None if those of a block are unknown."""
        known_macs = [entry.macs for entry in self.entries if entry.macs is not None]
        return sum(known_macs) if len(known_macs) == len(self.entries) else None

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries, one per block."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.entries)

    def __str__(self) -> str:
        """Return a table with a row for each block, and the totals."""
        headings = ("path", "block", "channels", "parameters", "MACs", "weights")
        rows = [
            (entry.path, entry.block, entry.channels, entry.parameters, entry.macs, entry.weights)
            for entry in self.entries
        ]
        total = (f"{len(self.entries)} in all", "", "", self.parameters, self.macs, "")
        return text_table([headings, *rows, total], NUMBERS)
