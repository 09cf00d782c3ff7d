"""Select the rows for a report: base cases, pairs of attzoo and a peer, and plain networks; name runs and settings."""

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
CHANGING: Final = (" before", " after")   # endings of facts that change during a run, such as the load


@dataclass(frozen=True)
class Entry:
    """A row of a report.

    Attributes:
        label: the name of its run in the report.
        run: its run.
        row: the row.

    """

    label: str
    run: Run
    row: Row


@dataclass(frozen=True)
class Pair:
    """A comparison of attzoo's block and a peer's in one case.

    Attributes:
        case: the case.
        clock: the clock of both times.
        ours: attzoo's provider.
        peer: the peer's provider, as text.
        ratio: attzoo's time / the peer's.
        verdict: "faster", "slower", "same" or the status of the row, for attzoo.

    """

    case: Case
    clock: str
    ours: Provider
    peer: str
    ratio: Spread
    verdict: str

    @property
    def eager(self) -> bool:
        """Whether attzoo's block is eager torch, and thus the peer's too."""
        return is_eager(self.ours)


def machine_name(run: Run) -> str:
    """Return the name of the GPU, or else of the processor."""
    keys = ("gpu", "processor") if run.device == "cuda" else ("processor",)
    return next((str(run.machine[key]) for key in keys if run.machine.get(key)), "an unnamed machine")


def environment(run: Run) -> dict[str, str]:
    """Return the device, torch version and machine, which runs must share for their times to be comparable."""
    machine = {name: str(value) for name, value in run.machine.items() if not name.endswith(CHANGING)}
    return {"device": run.device, "torch": run.versions.get("torch") or "none"} | machine


def entries(runs: Sequence[Run]) -> list[Entry]:
    """Return all rows with the number of their run as label, and with the machine's name if the machines differ.

    A row without times gets the clock of the timed rows of its case.
    """
    is_same_machine = all(environment(run) == environment(runs[0]) for run in runs)
    labels = [str(i) if is_same_machine else f"{i}: {machine_name(run)}" for i, run in enumerate(runs, 1)]
    return [Entry(label, run, row) for label, run in zip(labels, runs, strict=True) for row in _set_clocks(run.rows)]


def _set_clocks(rows: Sequence[Row]) -> list[Row]:
    """Return the rows. A row without times gets the clock of the timed rows of its case."""
    clocks = {row.case: row.clock for row in reversed(rows) if row.seconds}
    return [row if row.seconds else replace(row, clock=clocks.get(row.case, UNTIMED)) for row in rows]


def blocks(rows: Iterable[Row]) -> list[str]:
    """Return the names of the blocks of the rows, without repetition; blocks timed only in networks come last."""
    sorted_rows = sorted(rows, key=lambda row: row.case.network is not None)
    return list(dict.fromkeys(row.case.block for row in sorted_rows))


def base_rows(rows: Iterable[Row], block: str) -> list[Row]:
    """Return the timed rows of a block alone that have the setting of its first row, the block's base case."""
    block_rows = [row for row in rows if row.case.block == block and row.case.network is None and row.seconds]
    return [row for row in block_rows if setting(row) == setting(block_rows[0])]


def setting(row: Row) -> tuple[object, ...]:
    """Return network, variant (None in a network), shapes, dtype, layout and clock: all but block and mode."""
    case = row.case
    variant = None if case.network else case.variant
    return case.network, variant, case.shapes, case.dtype, case.layout, row.clock


def is_eager(provider: Provider) -> bool:
    """Whether a provider is eager torch, neither compiled nor fused nor Keras."""
    return provider.form == "eager" and provider.backend == "torch"


def pairs(rows: Iterable[Row]) -> list[Pair]:
    """Return the comparisons of attzoo with a peer in the rows, whichever of the two is the reference."""
    selected = []
    for row in rows:
        is_ours, reference = row.provider.library == "attzoo", row.reference or ""
        reference_is_ours = reference.split(" ")[0] == "attzoo"
        if row.ratio is None or is_ours == reference_is_ours or row.provider == COPY:
            continue
        if is_ours:
            selected.append(Pair(row.case, row.clock, row.provider, reference, row.ratio, row.verdict))
        else:
            selected.append(_inverted(row, row.ratio, reference))
    return selected


def _inverted(row: Row, ratio: Spread, reference: str) -> Pair:
    """Return the comparison for the row of a peer whose reference is attzoo. ratio: the peer's time / attzoo's."""
    form = reference.partition("(")[2].rstrip(")") or "eager"
    verdict = {"faster": "slower", "slower": "faster"}.get(row.verdict, row.verdict)
    inverse = Spread(1 / ratio.high, 1 / ratio.median, 1 / ratio.low)
    ours = Provider("attzoo", row.provider.backend, form)
    return Pair(row.case, row.clock, ours, str(row.provider), inverse, verdict)


def time_ratio(row: Row, reference: Row) -> Spread | None:
    """Return the time of a row / the time of another row of the same case and clock; None without a common reference.

    Both times are known as ratios to the reference. The quartiles are the widest that the quartiles of the two ratios
    allow, because the rounds of the two rows are not paired.
    """
    if row.ratio is None or row.reference != reference.reference:
        return None
    if str(reference.provider) == row.reference:
        return row.ratio
    if reference.ratio is None:
        return None
    row_ratio, base_ratio = row.ratio, reference.ratio
    return Spread(
        row_ratio.low / base_ratio.high, row_ratio.median / base_ratio.median, row_ratio.high / base_ratio.low
    )


def plain_network(row: Row, rows: Iterable[Row]) -> Row | None:
    """Return the row of the same network without a block; None if it was not timed.

    It has the same setting, mode and form: for fused kernels the eager form, because a network without a block has no
    kernels. Of several providers, that of `row` is preferred.
    """
    form = "eager" if row.provider == FUSED else row.provider.form
    candidates = [
        plain for plain in rows
        if plain.case.block == "none" and plain.seconds and plain.case.mode == row.case.mode
        and setting(plain) == setting(row) and plain.provider.form == form
        and plain.provider.backend == row.provider.backend
    ]   # fmt: skip
    return min(candidates, key=lambda plain: plain.provider != row.provider, default=None)


def throughput_fraction(row: Row, rows: Iterable[Row]) -> float | None:
    """Return the throughput of a network / that of the network without the block; None if that was not timed."""
    plain_row = plain_network(row, rows)
    if plain_row is None or plain_row.seconds is None or row.seconds is None:
        return None
    return plain_row.seconds.median / row.seconds.median


def shapes_text(case: Case) -> str:
    """Return the shapes of a case's inputs as text, such as "2x8x5x4 + 2x8x3x2"."""
    return " + ".join("x".join(map(str, shape)) for shape in case.shapes)


def clock_name(clock: str) -> str:
    """Return a short name of a clock for a report, the beginning of its description in CLOCKS."""
    return CLOCKS.get(clock, clock).partition(":")[0]
