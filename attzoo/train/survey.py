"""Count the values in masks, derive the number of classes, and raise errors for values with two meanings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..data import IGNORE, Labels, describe_mask
from ..data.labels import (
    BLENDING_HINT,
    MAX_LISTED,
    Color,
    Value,
    check_labelled,
    check_values,
    encode_color,
    option_of,
    shown,
)
from ..data.masks import Stored, read_stored

MAX_CLASSES: Final = 64   # without --classes; more values are usually shades of grey or numbered objects
PALETTE, WHITE_LEAST, GREY = "palette", "grey whose least value is white", "grey"
WHITE: Final = (255, 255, 255)
Resize = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True)
class MaskCounts:
    """Which values masks hold, and how often. All values are colours if any mask has colours.

    Attributes:
        counts: the number of pixels with each value.
        masks: the number of masks with each value.
        lost: the number of masks from which resizing removes each value.
        colors: for each (value, colour, kind of mask) that occurs, the path of the first mask with it.
        holders: for each subset of {1, 255}, the path of the first mask that has these of the two values.
    """

    counts: Counter[Value] = field(default_factory=Counter)
    masks: Counter[Value] = field(default_factory=Counter)
    lost: Counter[Value] = field(default_factory=Counter)
    colors: dict[tuple[Value, Color, str], Path] = field(default_factory=dict)
    holders: dict[frozenset[Value], Path] = field(default_factory=dict)


def count_values(masks: Iterable[Path], labels: Labels | None, resize: Resize | None = None) -> MaskCounts:
    """Return how many pixels and masks have each value, and from how many masks `resize` removes it.

    Reads all masks. Raises the errors of `read_stored`.

    Args:
        masks: the paths of the masks.
        labels: the values of the classes; None if values are class indices.
        resize: resizes an array of integers (*S) by the nearest pixel; None to count no removed values.
    """
    by_value, by_color = MaskCounts(), MaskCounts()
    for path in masks:
        stored = read_stored(path, labels)
        counts = stored.counts()
        lost_values = _lost_values(stored, counts, resize) if resize else set()
        for totals, value_of in ((by_value, lambda value: value), (by_color, stored.color)):
            for value, count in counts.items():
                totals.counts[value_of(value)] += count
            totals.masks.update({value_of(value) for value in counts})
            totals.lost.update({value_of(value) for value in lost_values})
        if not stored.are_colors:
            kind = PALETTE if stored.palette is not None else WHITE_LEAST if stored.info.is_white_least else GREY
            for value in counts:
                by_value.colors.setdefault((value, stored.color(value), kind), path)
            by_value.holders.setdefault(frozenset({1, IGNORE} & counts.keys()), path)
    if any(isinstance(value, tuple) for value in by_value.counts):
        return replace(by_color, colors=by_value.colors)
    return by_value


def _lost_values(stored: Stored, values: Iterable[Value], resize: Resize) -> set[Value]:
    """Return the elements of `values`, values of a mask, that no pixel has after `resize`."""
    numbers = np.sort([encode_color(value) if isinstance(value, tuple) else value for value in values])
    indices = np.unique(resize(np.searchsorted(numbers, stored.values)))   # resizing takes small numbers only
    return {stored.value(value) for value in np.delete(numbers, indices)}


def check_consistent(parts: Sequence[MaskCounts], labels: Labels | None) -> None:
    """Raise ValueError if a value has different meanings in different masks, as far as files show it.

    Signs of different meanings are: a value with different colours in palettes, or in a palette and in grey; a colour
    with different values in palettes; grey whose least value is white beside other grey; and, without labels, masks
    with 0 and 1 beside masks with 0 and 255.

    `parts` are the counts of the training masks and of the validation masks.
    """
    colors = _first_paths(part.colors for part in parts)
    by_value: dict[Value, list[tuple[Color, str, Path]]] = {}
    fix = 'list the colours of all classes by --labels "R,G,B;R,G,B;...", with {} and {}, or save all masks in one way'
    for (value, color, kind), path in colors.items():
        for earlier_color, earlier_kind, earlier_path in by_value.setdefault(value, []):
            if color != earlier_color and PALETTE in (kind, earlier_kind):
                got = f"{earlier_color} in {earlier_path} and {color} in {path}: {fix.format(earlier_color, color)}"
                raise ValueError(f"expected masks in which the value {value} has one colour, got {got}")
        by_value[value].append((color, kind, path))
    _check_palettes({(v, c): path for (v, c, kind), path in colors.items() if kind == PALETTE and isinstance(v, int)})
    kinds = _first_paths({kind: path} for (_, _, kind), path in colors.items())
    if {GREY, WHITE_LEAST} <= kinds.keys():
        got = f"{kinds[WHITE_LEAST]}, in which 0 is white (MinIsWhite), and {kinds[GREY]}, in which 0 is black"
        raise ValueError(f"expected masks of one kind of grey, got {got}: {fix.format((0, 0, 0), WHITE)}")
    if labels is None:
        _check_white({value for part in parts for value in part.counts}, parts)


def _check_palettes(colors: Mapping[tuple[int, Color], Path]) -> None:
    """Raise ValueError if masks with palettes have one colour at different values, and their palettes disagree on one.

    Two palettes disagree on a value if it has the colour in one of them, and another colour in the other. A palette
    with the colour at both values is accepted: these may be two classes.

    Args:
        colors: for each (value, colour) that occurs in a palette, the path of the first mask with it.
    """
    for ((value, color), path), ((other_value, other_color), other_path) in combinations(colors.items(), 2):
        if color != other_color:
            continue
        for mask_path, index in ((other_path, value), (path, other_value)):
            palette = describe_mask(mask_path).palette
            if palette is not None and tuple(*palette[index : index + 1].tolist()) not in ((), color):
                got = f"got {value} in {path} and {other_value} in {other_path}"
                fix = f'list the colours of all classes by --labels "R,G,B;R,G,B;...", with {color}'
                expected = f"expected masks in which the colour {color} has one value"
                raise ValueError(f"{expected}, {got}: {fix}, or save all in one way")


def _first_paths(mappings: Iterable[Mapping[Any, Path]]) -> dict[Any, Path]:
    """Return one mapping with the keys of all mappings. A key in several has its first path."""
    first_paths: dict[Any, Path] = {}
    for mapping in mappings:
        for key, path in mapping.items():
            first_paths.setdefault(key, path)
    return first_paths


def _check_white(values: Set[Value], parts: Sequence[MaskCounts]) -> None:
    """Raise ValueError if 255 may be the class that is 1 in other masks.

    It may be if `values`, the values in all masks, are 0, 1 and 255 (or 1 and 255), and no mask holds both 1 and 255.
    """
    holders = _first_paths(part.holders for part in parts)
    if values - {0} != {1, IGNORE} or frozenset({1, IGNORE}) in holders:
        return
    got = f"1 in {holders[frozenset({1})]}, {IGNORE} in {holders[frozenset({IGNORE})]}, and both in none"
    is_white = any(value == 1 and color == WHITE for part in parts for value, color, _ in part.colors)
    same_fix = f"give {option_of([(0, 0, 0), WHITE])}, as both are white" if is_white else "save it as 1 in all masks"
    fix = f"give {option_of([0, 1])} to ignore {IGNORE}, {option_of([0, 1, IGNORE])} to make it a class of its own"
    fix += f"; or if {IGNORE} is class 1, {same_fix}"
    raise ValueError(f"expected masks in which {IGNORE} has one meaning, got {got}: {fix}")


def class_counts(counts: Mapping[Value, int], labels: Labels | None) -> Counter[int]:
    """Return the number of pixels of each class, and of 255, which is ignored.

    Args:
        counts: the number of pixels with each value.
        labels: the class of each value; None if values are class indices.

    Raises:
        ValueError: for values that are not classes.
    """
    if labels is None:
        check_values(counts)
        return Counter({value: count for value, count in counts.items() if isinstance(value, int)})
    check_labelled(counts, labels)
    position = {value: k for k, value in enumerate(labels.values)}
    return Counter({position.get(value, IGNORE): count for value, count in counts.items()})


def _counts_by_class(counts: Mapping[Value, int], labels: Labels | None) -> Counter[int]:
    """Return class -> count from value -> count, without values that are not classes and without 255."""
    position = {value: k for k, value in enumerate(labels.values)} if labels else {}
    by_class = {position.get(value, IGNORE) if labels else value: count for value, count in counts.items()}
    return Counter({k: count for k, count in by_class.items() if isinstance(k, int) and k != IGNORE})


def lost_classes(parts: Sequence[MaskCounts], labels: Labels | None) -> dict[int, tuple[int, int]]:
    """Return, by class, the number of masks from which resizing removes the class, and of masks with the class.

    parts: the counts of training masks and of validation masks. labels: the values of the classes; None if values are
    class indices.
    """
    lost, masks = Counter[int](), Counter[int]()
    for part in parts:
        lost += _counts_by_class(part.lost, labels)
        masks += _counts_by_class(part.masks, labels)
    return {k: (lost[k], masks[k]) for k in sorted(lost)}


def check_size(training: MaskCounts, labels: Labels | None, size: Sequence[int] | None) -> None:
    """Raise ValueError if resizing to `size` leaves fewer than two classes to train on."""
    lost_indices = [k for k, (lost_masks, masks) in lost_classes([training], labels).items() if lost_masks == masks]
    remaining = sorted(_counts_by_class(training.masks, labels).keys() - {*lost_indices})
    if size and lost_indices and len(remaining) < 2:
        got = f"{_class_list(remaining)} left, and no pixel of {_class_list(lost_indices)}, whose objects are too small"
        option = f"--size {','.join(map(str, size))}"
        raise ValueError(f"expected two classes or more in masks resized by {option}, got {got}: set a larger --size")


def check_gaps(counts: Mapping[int, int]) -> None:
    """Raise ValueError unless the values in all masks are 0, 1, 2 and so on, without a gap.

    Call it if neither classes nor labels are set: masks with 0 and 128 hardly have 129 classes.
    """
    values = sorted(counts.keys() - {IGNORE})
    if not values:
        return
    if values != [0] and values != list(range(len(values))):
        all_values = sorted(counts) if len(counts) <= MAX_CLASSES else []
        option = option_of(all_values) if all_values else "--labels"
        fix = f"list the value of each class by {option}, or set --classes {values[-1] + 1} to leave some empty"
        fix += f", {BLENDING_HINT}" if len(counts) > MAX_LISTED else ""
        raise ValueError(f"expected class indices 0, 1, 2, ... in masks, got {shown(counts)}: {fix}")
    if len(values) > MAX_CLASSES:
        got = f"{len(values)} values, which are rarely classes: set --classes {len(values)} if they are"
        raise ValueError(f"expected at most {MAX_CLASSES} classes, got {got}")


def check_classes(training: Mapping[int, int], validation: Mapping[int, int], masks: int) -> None:
    """Raise ValueError if there are fewer than two classes to train on, or validation has no class or a larger one.

    Args:
        training: the number of pixels of each class in the masks to train on, and of 255.
        validation: the same for the masks to validate on.
        masks: the number of masks to train on, for the message.
    """
    classes, validation_classes = (sorted(counts.keys() - {IGNORE}) for counts in (training, validation))
    if len(classes) < 2:
        got = f"expected masks of two classes or more to train on, got {masks} masks with {shown(training)}"
        ignored = f", of which {IGNORE} is ignored: to make it a class, give {option_of([*classes, IGNORE])}"
        fix = ": set another --seed for another split, or check the values in the masks"
        raise ValueError(got + (ignored if classes and IGNORE in training else fix))
    if not validation_classes:
        fix = "set another --seed for another split, or move masks with classes to the validation masks"
        got = f"only {shown(validation)}, which is ignored"
        raise ValueError(f"expected masks with classes to validate on, got {got}: {fix}")
    if larger := [k for k in validation_classes if k > classes[-1]]:
        got = f"also {_class_list(larger)}"
        fix = "set another --seed for another split, or move some of their masks to the training masks"
        raise ValueError(f"expected to validate on classes of training, {_class_list(classes)}, got {got}: {fix}")


def _class_list(classes: Sequence[int]) -> str:
    """Return up to 20 classes as text, such as "classes 0, 1", or "no class"."""
    return f"class{'es' * (len(classes) > 1)} {', '.join(map(str, classes[:20]))}" if classes else "no class"
