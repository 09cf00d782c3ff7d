"""What a report says, in order: sections of words, tables and pictures, which report.py writes as Markdown or HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from .cases import BOTH, MODES
from .figures import count, memory, percent, quartiles, rate, seconds, value_range, times
from .fused import kernels
from .picking import (
    CLOCKS,
    NETWORKS,
    Entry,
    Pair,
    base,
    blocks,
    clock_name,
    eager,
    entries,
    fraction,
    name,
    pairs,
    place,
    setting,
    size,
)
from .runs import COPY, Provider, Row, Run
from .tables import Section, Table

ECA_PAPER: Final = "Wang et al., ECA-Net, CVPR 2020, https://arxiv.org/abs/1910.03151v4, Table 3"
PUBLISHED: Final = {   # ResNet-50's images per second there, on an RTX 2080 Ti: block -> mode -> number
    "none": {"training": 1024, "inference": 1855},
    "se": {"training": 759, "inference": 1620},
    "cbam": {"training": 472, "inference": 1213},
    "eca": {"training": 785, "inference": 1805},
}


def sections(runs: Sequence[Run]) -> list[Section]:
    """The whole report; what was not measured has no section, and one run's rows do not say whose they are."""
    found = entries(runs)
    every = [
        opening(runs),
        beside(found),
        kernels(found),
        alone(found),
        *(network(found, key) for key in NETWORKS),
        forms(found),
        Section("How to read the figures", READING),
        *(rows_of(found, block) for block in blocks(entry.row for entry in found)),
        troubles(found),
        left_out(runs),
        absent(runs),
        conditions(runs),
    ]
    told = [section for section in every if section.parts]
    return told if len(runs) > 1 else [_alone(section) for section in told]


def _alone(section: Section) -> Section:
    """The section without the column that says of which run a row is."""
    return replace(section, parts=[_without_run(part) if isinstance(part, Table) else part for part in section.parts])


def _without_run(table: Table) -> Table:
    if table.head[0] != "run":
        return table
    return Table(table.head[1:], [(title, [row[1:] for row in rows]) for title, rows in table.groups])


READING: Final = (
    "Times are medians, with quartiles in brackets. A time in copies is the time divided by that of copying the first "
    "input x once, taken in the same rounds: it says what a block costs on any machine whose memory is the bottleneck. "
    "The ratio is a provider's time divided by the reference's, round by round; the control is the reference divided "
    "by itself in the same rounds, so that what the control shows around 1 is noise. Faster and slower mean by "
    "5 % or more, and that the quartiles of the two do not overlap; all else is the same.",
    "Error is the largest deviation of the output and of the inputs' gradients from the block's float64 meaning, as "
    "a part of that one's norm; what is too far off is not timed. Kept is what autograd holds for the backward pass "
    "besides inputs and parameters, peak the most that is alive at once besides inputs and weights in a training step, "
    "both also in multiples of x. GB/s counts only bytes that cannot be avoided, each input read and each result "
    "written once; its part of the copy ceiling says how far a block is from the best that this memory allows. Small "
    "inputs that stay in a cache can exceed it.",
)   # fmt: skip


def opening(runs: Sequence[Run]) -> Section:
    """What was measured, where and how, and what came out, in a few sentences."""
    rows = [row for run in runs for row in run.rows]
    where = " and ".join(dict.fromkeys(f"{name(run)} ({run.device}, torch {place(run)['torch']})" for run in runs))
    statuses = Counter(row.status for row in rows)
    cases = len({row.case for row in rows})
    told = f"{count(cases, 'case')}, {count(statuses['timed'], 'timing')}" if rows else "nothing was timed"
    bad = ", ".join(f"{n} {status}" for status, n in statuses.items() if status != "timed")
    words = [f"Measured on {where}: {told}{f'; {bad}' if bad else ''}."]
    if rows:
        words.append(f"{_clocks(rows)} All providers of a case take turns in the same rounds, and only after their "
                     "outputs and gradients have agreed with the block's float64 meaning.")
    if any(run.device == "cpu" for run in runs):
        words.append("CPU timings of one thread; not comparable with a GPU's.")
    if len(dict.fromkeys(str(place(run)) for run in runs)) > 1:
        words.append("Several machines stand side by side here: a time of one says nothing about a time of another.")
    return Section("Summary", [*words, *_verdicts(rows)])


def _clocks(rows: Iterable[Row]) -> str:
    clocks = dict.fromkeys(row.clock for row in rows if row.seconds)
    return f"A time is {'; or '.join(CLOCKS.get(clock, clock) for clock in clocks)}." if clocks else ""


def _verdicts(rows: Iterable[Row]) -> list[str]:
    """How ours and their eager peers compare, in one sentence."""
    found = [pair for pair in pairs(rows) if pair.eager]
    if not found:
        return []
    return [f"Of {count(len(found), 'comparison')} of attzoo with the same of an eager peer, attzoo is "
            f"{verdicts(found).replace('same', 'the same')}."]


def verdicts(found: Sequence[Pair]) -> str:
    """How often which verdict."""
    counted = Counter(pair.verdict for pair in found)
    order = [*("faster", "same", "slower", "unsteady"), *counted]
    return ", ".join(f"{verdict} in {counted[verdict]}" for verdict in dict.fromkeys(order) if counted[verdict])


def beside(found: Sequence[Entry]) -> Section:
    """Per block, attzoo beside its eager peers over all cases."""
    words = (
        "Ratios are attzoo's time divided by the peer's: the range of their medians over all sizes, dtypes and layouts "
        "that were timed, below 1 where attzoo is faster. Faster and slower count only what the control bears out."
    )
    table = _beside(found, wanted=True)
    return Section("attzoo beside its peers", [words, table] if table.groups else [])


def _beside(found: Sequence[Entry], *, wanted: bool) -> Table:
    """The pairs that are eager, or those that are not, summed up under their clocks where there are several."""
    of_line: dict[tuple[object, ...], list[Pair]] = {}
    for block in blocks(entry.row for entry in found):
        for entry in found:
            for pair in pairs([entry.row]):
                if pair.case.block == block and pair.eager is wanted:
                    key = entry.label, pair.case.network, pair.case.variant, block, pair.ours, pair.peer, pair.clock
                    of_line.setdefault(key, []).append(pair)
    head = ["run", "block", "variant", "attzoo", "beside"]
    head += [f"{mode}: {what}" for mode in BOTH for what in ("ratio", "verdict")]
    lines = [(mine[0].clock, [str(label), *_said(mine)]) for (label, *_), mine in of_line.items()]
    clocks = dict.fromkeys(clock for clock, _ in lines)
    titles = {clock: clock_name(clock) if len(clocks) > 1 else None for clock in clocks}
    return Table(head, [(titles[clock], [line for other, line in lines if other == clock]) for clock in clocks])


def _said(found: Sequence[Pair]) -> list[str]:
    first = found[0]
    case = first.case
    where = f"{NETWORKS.get(case.network, case.network)} with {case.block}" if case.network else case.block
    cells = [cell for mode in BOTH for cell in _span(found, mode)]
    return [where, case.variant or "", str(first.ours), first.peer, *cells]


def _span(found: Sequence[Pair], mode: str) -> list[str]:
    of_mode = [pair for pair in found if pair.case.mode == mode]
    steady = [pair.ratio.median for pair in of_mode if pair.verdict != "unsteady"]
    return [value_range(steady), verdicts(of_mode)]


def alone(found: Sequence[Entry]) -> Section:
    """What every eager provider's block costs at the size that was timed first."""
    lines = _costs_of([entry for entry in found if eager(entry.row.provider)])
    words = f"In time and in memory, at the size that was timed first: {firsts(entry.row for entry in found)}."
    return Section("What a block costs", [words, Table(ALONE, [(None, lines)])] if lines else [], "alone")


ALONE: Final = (
    *("run", "block", "provider"), *(f"{mode}: {what}" for mode in BOTH for what in ("time", "copies")),
    *("kept MiB", "peak MiB"),
)   # fmt: skip


def _costs_of(found: Sequence[Entry]) -> list[list[str]]:
    return [
        [label, block, str(provider), *_costs({row.case.mode: row for row in of_block if row.provider == provider})]
        for block in blocks(entry.row for entry in found)
        for label in dict.fromkeys(entry.label for entry in found)
        if (of_block := base([entry.row for entry in found if entry.label == label], block))
        for provider in dict.fromkeys(row.provider for row in of_block)
        if provider != COPY
    ]


def forms(found: Sequence[Entry]) -> Section:
    """The same of what is compiled, fused or of Keras."""
    of_backends = {what: [e for e in found if test(e.row.provider)] for what, test in FORMS.items()}
    groups = [(_form(what, mine), lines) for what, mine in of_backends.items() if (lines := _costs_of(mine))]
    pairs = _beside(found, wanted=False)
    words = "The same blocks compiled or fused, and Keras on its backends, at the same sizes, beside their references."
    tables = [table for table in (Table(ALONE, groups), pairs) if table.groups]
    return Section("Compiled, fused, and in Keras", [words, *tables] if tables else [], "forms")


FORMS: Final[Mapping[str, Callable[[Provider], bool]]] = {   # apart, for they may not have a clock in common
    "torch": lambda provider: provider.backend == "torch" and not eager(provider),
    "Keras": lambda provider: provider.backend != "torch",
}


def _form(what: str, found: Sequence[Entry]) -> str:
    clock = next(entry.row.clock for entry in found if entry.row.seconds and not entry.row.case.network)
    return f"{what}, {clock_name(clock)}"


def _costs(of_mode: Mapping[str, Row]) -> list[str]:
    cells = []
    for row in (of_mode.get(mode) for mode in BOTH):
        cells += [_doubted(row, seconds(row.seconds)), quartiles(row.copies)] if row else ["", ""]
    trained = of_mode.get("training")
    x = trained.case.size if trained else None
    return [*cells, *(memory(size, x) for size in ((trained.kept, trained.peak) if trained else (None, None)))]


def firsts(rows: Iterable[Row]) -> str:
    """The settings of the base cases, with the blocks that share them."""
    rows = list(rows)
    of_size: dict[str, list[str]] = {}
    for block in blocks(rows):
        for row in base(rows, block)[:1]:
            of_size.setdefault(f"{size(row.case)}, {row.case.dtype}, {row.case.layout}", []).append(block)
    return "; ".join(f"{shape} ({', '.join(found)})" for shape, found in of_size.items())


def network(found: Sequence[Entry], key: str) -> Section:
    """What each block does to a network's throughput."""
    mine = [entry for entry in found if entry.row.case.network == key and entry.row.case.mode in BOTH]
    head = ["run", "block", "provider"]
    head += [f"{mode}: {what}" for mode in BOTH for what in ("images/s", "of plain")]
    published = PUBLISHED if key == "resnet50" else {}
    head += [f"published {mode}: {what}" for mode in BOTH for what in ("images/s", "of plain") if published]
    groups = [
        (_setting(mine, which), _network(mine, which, published))
        for which in dict.fromkeys(setting(entry.row) for entry in mine)
    ]
    title = f"What a block costs a {NETWORKS[key]}"
    words = [f"Images per second of a whole {NETWORKS[key]} with the block in every place that it has for one, and "
             "that as a part of the same network without."]
    if published:
        words.append(f"Published: {ECA_PAPER}, on an RTX 2080 Ti. That is another machine, other software and another "
                     "batch size: compare the parts of the plain network, and those with care, not images per second.")
    return Section(title, [*words, Table(head, groups)] if mine else [], key)


def _setting(found: Sequence[Entry], which: tuple[object, ...]) -> str:
    row = next(entry.row for entry in found if setting(entry.row) == which)
    return f"{size(row.case)}, {row.case.dtype}, {row.case.layout}, {clock_name(row.clock)}"


def _network(
    found: Sequence[Entry], which: tuple[object, ...], published: Mapping[str, Mapping[str, int]]
) -> list[list[str]]:
    lines = []
    mine = [entry for entry in found if setting(entry.row) == which]
    order = ["none", *(block for block in blocks(entry.row for entry in mine) if block != "none")]
    keys = dict.fromkeys((entry.label, entry.row.case.block, entry.row.provider) for entry in mine)
    for label, block, provider in sorted(keys, key=lambda key: (key[0], order.index(key[1]))):
        rows = [entry.row for entry in mine if entry.label == label]
        of_mode = {row.case.mode: row for row in rows if (row.case.block, row.provider) == (block, provider)}
        cells = [cell for mode in BOTH for cell in _throughput(of_mode.get(mode), rows)]
        told = published.get(block, {})
        cells += [cell for mode in BOTH if published for cell in _told(told.get(mode), published["none"][mode])]
        lines.append([label, block, str(provider), *cells])
    return lines


def _throughput(row: Row | None, rows: Sequence[Row]) -> tuple[str, str]:
    if row is None:
        return "", ""
    if row.seconds is None:
        return row.status, ""
    part = fraction(row, rows)
    return _doubted(row, times(row.case.shapes[0][0] / row.seconds.median)), percent(part) if part else ""


def _doubted(row: Row, text: str) -> str:
    """The text, with a word to it where the row was not steady."""
    return text if row.status == "timed" else f"{row.status}: {text}"


def _told(number: int | None, plain: int) -> tuple[str, str]:
    return (str(number), percent(number / plain)) if number else ("", "")


HEAD: Final = ("provider", "verdict", "time", "copies", "ratio", "control", "error", "kept MiB", "peak MiB", "GB/s")


def rows_of(found: Sequence[Entry], block: str) -> Section:
    """Every row of a block, by case."""
    mine = [entry for entry in found if entry.row.case.block == block]
    keys = [(which, mode) for which in dict.fromkeys(setting(entry.row) for entry in mine) for mode in MODES]
    of_key = {key: [e for e in mine if (setting(e.row), e.row.case.mode) == key] for key in keys}
    groups = [(_case([e.row for e in group]), [_line(e) for e in group]) for group in of_key.values() if group]
    title = "the networks without a block" if block == "none" else block
    return Section(f"Every row: {title}", [Table(["run", *HEAD], groups)])


def _case(rows: Sequence[Row]) -> str:
    case = rows[0].case
    where = f"{NETWORKS.get(case.network, case.network)}, " if case.network else ""
    to = " and ".join(dict.fromkeys(row.reference for row in rows if row.ratio and row.reference))
    variant = f"variant {case.variant}, " if case.variant else ""
    said = f"{where}{variant}{size(case)}, {case.dtype}, {case.layout}, {case.mode}, {clock_name(rows[0].clock)}"
    return f"{said}; ratios to {to}" if to else said


def _line(entry: Entry) -> list[str]:
    row = entry.row
    cells = [str(row.provider), _verdict(row), seconds(row.seconds), quartiles(row.copies), quartiles(row.ratio)]
    cells += [quartiles(row.control), f"{row.error:.0e}" if row.error is not None else ""]
    x = None if row.case.network else row.case.size
    ceiling = entry.run.ceilings.get("copy GB/s")
    return [entry.label, *cells, memory(row.kept, x), memory(row.peak, x), rate(row, ceiling)]


def _verdict(row: Row) -> str:
    """What the row says; of the one that the others are held against, that it is; of nothing, nothing."""
    if row.verdict != "timed":
        return row.verdict
    return "reference" if str(row.provider) == row.reference else ""


def troubles(found: Sequence[Entry]) -> Section:
    """What was not timed, or not well, and why."""
    lines = [
        [entry.label, str(entry.row.case), str(entry.row.provider), entry.row.status,
         entry.row.why or "no reason was written down"]
        for entry in found if entry.row.status != "timed"
    ]   # fmt: skip
    head = ["run", "case", "provider", "status", "why"]
    words = "Wrong: the output or a gradient was off. Failed: it raised. Neither is timed. Unsteady: the copy or the " \
            "control moved while it was timed, and repeating did not help; these times stand above and decide nothing."
    return Section("What went wrong", [words, Table(head, [(None, lines)])] if lines else [])


def left_out(runs: Sequence[Run]) -> Section:
    """The cases that time ran out for."""
    lines = [[str(i), case] for i, run in enumerate(runs, 1) for case in run.left]
    head = ["run", "case"]
    return Section("Left out for time", [Table(head, [(None, lines)])] if lines else [])


def absent(runs: Sequence[Run]) -> Section:
    """Peers that are not installed."""
    lines = [[str(i), *what] for i, run in enumerate(runs, 1) for what in run.absent.items()]
    head = ["run", "package", "to install it"]
    return Section("Not installed, so not measured", [Table(head, [(None, lines)])] if lines else [])


def conditions(runs: Sequence[Run]) -> Section:
    """Where, when, with what and how every run was made."""
    groups = [(f"run {i}" if len(runs) > 1 else None, _conditions(run)) for i, run in enumerate(runs, 1)]
    return Section("Conditions", [Table(["what", "as it was"], groups)])


def _conditions(run: Run) -> list[list[str]]:
    made = {"command": run.command, "date": run.date, "commit": run.commit or "unknown", "suite": run.suite}
    versions = {name: number for name, number in run.versions.items() if number}
    ceilings = {name: times(number) for name, number in run.ceilings.items()}
    parts = [made, {"device": run.device}, run.machine, versions, run.flags, ceilings]
    return [[name, _printed(value)] for part in parts for name, value in part.items()]


def _printed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
