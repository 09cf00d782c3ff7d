"""What the masks of a folder hold, and how many classes that makes; what could mean two things is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..data import IGNORE, Labels
from ..data.labels import Value, check_labelled, check_values, option_of, shown
from ..data.masks import Stored, read_stored

MOST: Final = 64   # classes that are taken from the masks alone; more are rather shades of grey, or counted objects


def stored_counts(masks: Iterable[Path], labels: Labels | None) -> Counter[Value]:
    """The pixels of each value in all masks, of each colour where any mask has colours.

    Raises ValueError where palettes give an index different colours, and as `read_stored`.
    """
    counts: Counter[Value] = Counter()
    colors: dict[int, tuple[Value, Path]] = {}
    for path in masks:
        stored = read_stored(path, labels)
        found = stored.counts()
        _check_palette(path, stored, found, colors)
        counts.update(found)
    if any(isinstance(value, tuple) for value in counts):
        alike: Counter[Value] = Counter()
        for value, count in counts.items():
            alike[value if isinstance(value, tuple) else (value,) * 3] += count
        return alike
    return counts


def _check_palette(
    path: Path, stored: Stored, counts: Mapping[Value, int], colors: dict[int, tuple[Value, Path]]
) -> None:
    """Raise ValueError where a palette gives an index another colour than an earlier mask's; notes what is new."""
    if stored.palette is None:
        return
    for index in counts:
        assert isinstance(index, int)
        color = tuple(map(int, stored.palette[index])) if index < len(stored.palette) else (0, 0, 0)
        first, where = colors.setdefault(index, (color, path))   # type: ignore[arg-type]
        if first != color:
            fix = f'give classes by colour, --labels "R,G,B;R,G,B;...", with {first} and {color} among them'
            raise ValueError(f"expected palettes of one order, got {first} in {where} and {color} in {path}: {fix}")


def class_counts(counts: Mapping[Value, int], labels: Labels | None) -> Counter[int]:
    """The pixels of each class, 255 for those that count nowhere. Raises ValueError for values that are no classes."""
    if labels is None:
        check_values(counts)
        return Counter({value: count for value, count in counts.items() if isinstance(value, int)})
    check_labelled(counts, labels)
    position = {value: k for k, value in enumerate(labels.values)}
    return Counter({position.get(value, IGNORE): count for value, count in counts.items()})


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
        raise ValueError(f"expected to validate on classes of training, {listed(seen)}, got {listed(alone)} too")


def listed(classes: Sequence[int]) -> str:
    """Classes in words."""
    return f"class{'es' * (len(classes) > 1)} {', '.join(map(str, classes[:20]))}" if classes else "no class"
