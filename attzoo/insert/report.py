"""What `attach`, `swap` and `detach` did, as a value and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ..tables import text_table

NUMBERS: Final = ("channels", "parameters", "MACs")   # columns of the table that are set to the right


@dataclass(frozen=True)
class Place:
    """A block in a network.

    Args:
        path: of the block in the network.
        block: its name in the registry.
        channels: of its first input.
        parameters: how many numbers training moves.
        macs: multiply-adds for one sample; None where its spatial size is not known.
        weights: where its weights come from: "initial", or the library of the module that it replaced.

    """

    path: str
    block: str
    channels: int
    parameters: int
    macs: int | None = None
    weights: str = "initial"


@dataclass(frozen=True)
class Report:
    """The blocks that were put into a network or taken out of it. `print` shows them as a table."""

    model: Any = field(repr=False)
    places: tuple[Place, ...]

    @property
    def parameters(self) -> int:
        """How many numbers of all blocks training moves."""
        return sum(place.parameters for place in self.places)

    @property
    def macs(self) -> int | None:
        """Multiply-adds of all blocks for one sample; None where the size of one is not known."""
        known = [place.macs for place in self.places if place.macs is not None]
        return sum(known) if len(known) == len(self.places) else None

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __str__(self) -> str:
        head = ("path", "block", "channels", "parameters", "MACs", "weights")
        rows = [(p.path, p.block, p.channels, p.parameters, p.macs, p.weights) for p in self.places]
        total = (f"{len(self.places)} in all", "", "", self.parameters, self.macs, "")
        return text_table([head, *rows, total], NUMBERS)
