"""What the masks of a folder hold, and how many classes that makes; what could mean two things is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..data import IGNORE, Labels
from ..data.labels import BLENDED, SHOWN, Color, Value, check_labelled, check_values, number_of, option_of, shown
from ..data.masks import Stored, read_stored

MOST: Final = 64   # classes that are taken from the masks alone; more are rather shades of grey, or counted objects
PALETTE, WHITE_LEAST, GREY = "palette", "grey whose least value is white", "grey"
Resize = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True)
class MaskCounts:
    """What masks hold.

    counts: pixels of each value, of each colour where any mask has colours. masks: in how many a value is.
    lost: from how many masks a value vanishes when they are resized.
    shown: the first mask in which a value has a colour, of a palette, of grey whose least value is white, or of other
    grey. holders: the first mask with 1, with 255, and with both of them.
    """

    counts: Counter[Value] = field(default_factory=Counter)
    masks: Counter[Value] = field(default_factory=Counter)
    lost: Counter[Value] = field(default_factory=Counter)
    shown: dict[tuple[Value, Color, str], Path] = field(default_factory=dict)
    holders: dict[frozenset[Value], Path] = field(default_factory=dict)


def count_values(masks: Iterable[Path], labels: Labels | None, resize: Resize | None = None) -> MaskCounts:
    """What masks hold, and what is left of it by `resize`, nearest pixel by nearest pixel. Raises as `read_stored`."""
    by_value, by_color = MaskCounts(), MaskCounts()
    for path in masks:
        stored = read_stored(path, labels)
        counts = stored.counts()
        lost = _lost(stored, counts, resize) if resize else set()
        for found, of in ((by_value, lambda value: value), (by_color, stored.color)):
            for value, count in counts.items():
                found.counts[of(value)] += count
            found.masks.update({of(value) for value in counts})
            found.lost.update({of(value) for value in lost})
        if not stored.are_colors:
            kind = PALETTE if stored.palette is not None else WHITE_LEAST if stored.source.is_white_least else GREY
            for value in counts:
                by_value.shown.setdefault((value, stored.color(value), kind), path)
            by_value.holders.setdefault(frozenset({1, IGNORE} & counts.keys()), path)
    if any(isinstance(value, tuple) for value in by_value.counts):
        return replace(by_color, shown=by_value.shown)
    return by_value


def _lost(stored: Stored, values: Iterable[Value], resize: Resize) -> set[Value]:
    """Those of a mask's values that resizing leaves in no pixel."""
    known = np.sort([number_of(value) if isinstance(value, tuple) else value for value in values])
    left = np.unique(resize(np.searchsorted(known, stored.values)))   # positions, which are small as resizing needs
    return {stored.value(value) for value in np.delete(known, left)}


def check_consistent(found: Sequence[MaskCounts], labels: Labels | None) -> None:
    """Raise ValueError where values mean one thing in some masks and another in others, as far as can be seen.

    That is a value that palettes, or a palette and grey, show in different colours, grey whose least value is white
    beside other grey, and without labels masks with 0 and 1 beside ones with 0 and 255.
    """
    shown = _first(each.shown for each in found)
    seen: dict[Value, list[tuple[Color, str, Path]]] = {}
    fix = 'give classes by colour, --labels "R,G,B;R,G,B;...", with {} and {} among them, or save all masks in one way'
    for (value, color, kind), path in shown.items():
        for other, its, where in seen.setdefault(value, []):
            if color != other and PALETTE in (kind, its):
                got = f"got {other} in {where} and {color} in {path}: {fix.format(other, color)}"
                raise ValueError(f"expected masks in which {value} has one colour, {got}")
        seen[value].append((color, kind, path))
    kinds = _first({kind: path} for (_, _, kind), path in shown.items())
    if {GREY, WHITE_LEAST} <= kinds.keys():
        got = f"{kinds[WHITE_LEAST]} whose least value is white (MinIsWhite) and {kinds[GREY]} whose least is black"
        raise ValueError(f"expected masks of one kind of grey, got {got}: {fix.format((0, 0, 0), (255, 255, 255))}")
    if labels is None:
        _check_white({value for each in found for value in each.counts}, found)


def _first(found: Iterable[Mapping[Any, Path]]) -> dict[Any, Path]:
    """The first path of each key."""
    first: dict[Any, Path] = {}
    for each in found:
        for key, path in each.items():
            first.setdefault(key, path)
    return first


def _check_white(values: Set[Value], found: Sequence[MaskCounts]) -> None:
    """Raise ValueError where 255 may be the class that is 1 in other masks: both are there, in no mask together."""
    holders = _first(each.holders for each in found)
    if values - {0} != {1, IGNORE} or frozenset({1, IGNORE}) in holders:
        return
    got = f"1 in {holders[frozenset({1})]}, {IGNORE} in {holders[frozenset({IGNORE})]}, and both in none"
    white = (255, 255, 255)
    is_white = any(value == 1 and color == white for each in found for value, color, _ in each.shown)
    same = f"give {option_of([(0, 0, 0), white])}, as both are white" if is_white else "save it as 1 in all masks"
    fix = f"give {option_of([0, 1])} to ignore {IGNORE}, {option_of([0, 1, IGNORE])} to make it a class of its own"
    raise ValueError(f"expected masks in which {IGNORE} has one meaning, got {got}: {fix}, or if it is class 1 {same}")


def class_counts(counts: Mapping[Value, int], labels: Labels | None) -> Counter[int]:
    """The pixels of each class, 255 for those that count nowhere. Raises ValueError for values that are no classes."""
    if labels is None:
        check_values(counts)
        return Counter({value: count for value, count in counts.items() if isinstance(value, int)})
    check_labelled(counts, labels)
    position = {value: k for k, value in enumerate(labels.values)}
    return Counter({position.get(value, IGNORE): count for value, count in counts.items()})


def _classes_of(values: Mapping[Value, int], labels: Labels | None) -> Counter[int]:
    """Numbers by class, without those of values that are none."""
    position = {value: k for k, value in enumerate(labels.values)} if labels else {}
    by_class = {position.get(value, IGNORE) if labels else value: number for value, number in values.items()}
    return Counter({k: number for k, number in by_class.items() if isinstance(k, int) and k != IGNORE})


def lost_classes(found: Sequence[MaskCounts], labels: Labels | None) -> dict[int, tuple[int, int]]:
    """Classes that resizing removes from masks: from how many, and how many there are that hold the class."""
    lost, masks = (
        sum((_classes_of(getattr(each, name), labels) for each in found), Counter()) for name in ("lost", "masks")
    )
    return {k: (lost[k], masks[k]) for k in sorted(lost)}


def check_size(training: MaskCounts, labels: Labels | None, size: Sequence[int] | None) -> None:
    """Raise ValueError where resizing leaves fewer than two classes to train on."""
    lost = lost_classes([training], labels)
    gone = [k for k, (number, masks) in lost.items() if number == masks]
    left = sorted(_classes_of(training.masks, labels).keys() - {*gone})
    if size and gone and len(left) < 2:
        got = f"{listed(left)} left, and no pixel of {listed(gone)}, whose objects are too small"
        option = f"--size {','.join(map(str, size))}"
        raise ValueError(f"expected two classes or more in masks resized by {option}, got {got}: set a larger --size")


def check_gaps(counts: Mapping[int, int]) -> None:
    """Raise ValueError unless the classes in all masks are 0, 1, 2 and so on, without a gap.

    For where nothing says which there are: 0 and 128 are hardly 129 classes.
    """
    values = sorted(counts.keys() - {IGNORE})
    if not values:
        return
    if values != [0] and values != list(range(len(values))):
        every = sorted(counts) if len(counts) <= MOST else []
        by_labels = option_of(every) if every else "--labels"
        fix = f"give each value its class by {by_labels}, or set --classes {values[-1] + 1} to leave some empty"
        fix += f", {BLENDED}" if len(counts) > SHOWN else ""
        raise ValueError(f"expected class indices 0, 1, 2, ... in masks, got {shown(counts)}: {fix}")
    if len(values) > MOST:
        fix = f"set --classes {len(values)} if they are"
        raise ValueError(f"expected at most {MOST} classes, got {len(values)} values, which are rarely classes: {fix}")


def check_classes(training: Mapping[int, int], validation: Mapping[int, int], masks: int) -> None:
    """Raise ValueError unless there are two classes to train on, and none above them to validate on."""
    seen, judged = (sorted(counts.keys() - {IGNORE}) for counts in (training, validation))
    if len(seen) < 2:
        got = f"expected masks of two classes or more to train on, got {masks} masks with {shown(training)}"
        ignored = f", of which {IGNORE} is ignored: to make it a class, give {option_of([*seen, IGNORE])}"
        raise ValueError(got + (ignored if seen and IGNORE in training else ""))
    if alone := [k for k in judged if k > seen[-1]]:
        fix = "set another --seed, or move some of their masks to those to train on"
        raise ValueError(f"expected to validate on classes of training, {listed(seen)}, got {listed(alone)} too: {fix}")


def listed(classes: Sequence[int]) -> str:
    """Classes in words."""
    return f"class{'es' * (len(classes) > 1)} {', '.join(map(str, classes[:20]))}" if classes else "no class"
