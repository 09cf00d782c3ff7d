"""Which rows a report speaks of, and what it calls them: runs, blocks, base cases, pairs with peers, plain twins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .cases import Case
from .runs import COPY, FUSED, Provider, Row, Run
from .timer import Spread

UNTIMED: Final = "not timed"
CLOCKS: Final = {
    "cpu": "CPU time of one thread",
    "graph": "CUDA graphs replayed: the GPU's own time",
    "calls": "calls from Python: what an eager program waits for",
}
NETWORKS: Final = {"resnet50": "ResNet-50", "unet": "U-Net"}
MOMENTS: Final = (" before", " after")   # the load, the temperature: at the beginning of a run and at its end


@dataclass(frozen=True)
class Entry:
    """A row, the run that it is of, and what that run is called in this report."""

    label: str
    run: Run
    row: Row


@dataclass(frozen=True)
class Pair:
    """attzoo's block beside a peer's in one case: attzoo's time / the peer's."""

    case: Case
    clock: str
    ours: Provider
    peer: str
    ratio: Spread
    verdict: str

    @property
    def eager(self) -> bool:
        """Ours is neither compiled nor fused nor of Keras, and so is whom it is held against."""
        return eager(self.ours)


def name(run: Run) -> str:
    """The machine in a few words."""
    keys = ("gpu", "processor") if run.device == "cuda" else ("processor",)
    return next((str(run.machine[key]) for key in keys if run.machine.get(key)), "an unnamed machine")


def place(run: Run) -> dict[str, str]:
    """What runs must share to be compared: the device, torch, and the machine but for what a run says of its moment."""
    lasting = {name: str(value) for name, value in run.machine.items() if not name.endswith(MOMENTS)}
    return {"device": run.device, "torch": run.versions.get("torch") or "none"} | lasting


def entries(runs: Sequence[Run]) -> list[Entry]:
    """Every row under the number of its run, and its machine's name where there are several.

    What was not timed has no clock of its own, and stands with what was timed in the same case.
    """
    one = all(place(run) == place(runs[0]) for run in runs)
    labels = [str(i) if one else f"{i}: {name(run)}" for i, run in enumerate(runs, 1)]
    return [Entry(label, run, row) for label, run in zip(labels, runs, strict=True) for row in _clocked(run.rows)]


def _clocked(rows: Sequence[Row]) -> list[Row]:
    clocks = {row.case: row.clock for row in reversed(rows) if row.seconds}
    return [row if row.seconds else replace(row, clock=clocks.get(row.case, UNTIMED)) for row in rows]


def blocks(rows: Iterable[Row]) -> list[str]:
    """The blocks that rows are of, in the order in which they were timed alone, then those of networks only."""
    alone_first = sorted(rows, key=lambda row: row.case.network is not None)
    return list(dict.fromkeys(row.case.block for row in alone_first))


def base(rows: Iterable[Row], block: str) -> list[Row]:
    """The timed rows of a block alone at the setting of its first: cases come in order of worth."""
    alone = [row for row in rows if row.case.block == block and row.case.network is None and row.seconds]
    return [row for row in alone if setting(row) == setting(alone[0])]


def setting(row: Row) -> tuple[object, ...]:
    """All that says what was timed, but for the block and the mode; a network's variant is that of its block."""
    case = row.case
    variant = None if case.network else case.variant
    return case.network, variant, case.shapes, case.dtype, case.layout, row.clock


def eager(provider: Provider) -> bool:
    """Torch as it comes."""
    return provider.form == "eager" and provider.backend == "torch"


def pairs(rows: Iterable[Row]) -> list[Pair]:
    """Our blocks beside their peers, whichever of the two the ratio is to."""
    found = []
    for row in rows:
        ours, to = row.provider.library == "attzoo", (row.reference or "").split(" ")[0]
        if row.ratio is None or (not ours and to != "attzoo") or row.provider == COPY:
            continue
        if ours and to != "attzoo":
            found.append(Pair(row.case, row.clock, row.provider, row.reference or "", row.ratio, row.verdict))
        elif not ours:
            found.append(_turned(row, row.ratio, row.reference or ""))
    return found


def _turned(row: Row, ratio: Spread, ours: str) -> Pair:
    """What a peer's row says of ours, which it was held against."""
    form = ours.partition("(")[2].rstrip(")") or "eager"
    verdict = {"faster": "slower", "slower": "faster"}.get(row.verdict, row.verdict)
    turned = Spread(1 / ratio.high, 1 / ratio.median, 1 / ratio.low)
    twin = Provider("attzoo", row.provider.backend, form)
    return Pair(row.case, row.clock, twin, str(row.provider), turned, verdict)


def against(row: Row, other: Row) -> Spread | None:
    """A row's time / another's of the same case and clock, by what both take of a reference's; None without one.

    The quartiles are the furthest that those of the two ratios allow: rounds are not paired anew.
    """
    if row.ratio is None or row.reference != other.reference:
        return None
    if str(other.provider) == row.reference:
        return row.ratio
    if other.ratio is None:
        return None
    mine, its = row.ratio, other.ratio
    return Spread(mine.low / its.high, mine.median / its.median, mine.high / its.low)


def plain_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The same network without a block, in the same setting, of the same form; kernels are of blocks: there, eager."""
    form = "eager" if row.provider == FUSED else row.provider.form
    same = [
        other for other in rows
        if other.case.block == "none" and other.seconds and other.case.mode == row.case.mode
        and setting(other) == setting(row) and other.provider.form == form
        and other.provider.backend == row.provider.backend
    ]   # fmt: skip
    return min(same, key=lambda other: other.provider != row.provider, default=None)


def fraction(row: Row, rows: Iterable[Row]) -> float | None:
    """A network's throughput as a part of the same network's without the block; None where that was not timed."""
    plain = plain_of(row, rows)
    if plain is None or plain.seconds is None or row.seconds is None:
        return None
    return plain.seconds.median / row.seconds.median


def size(case: Case) -> str:
    """The shapes of a case's inputs."""
    return " + ".join("x".join(map(str, shape)) for shape in case.shapes)


def clock_name(clock: str) -> str:
    """A clock in a word or two."""
    return CLOCKS.get(clock, clock).partition(":")[0]
