"""What the values of masks mean, where they are not class indices: `--labels`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .. import contract

IGNORE: Final = 255   # the class index that no loss and no metric counts
SHIFT: Final = 16     # bits of one channel in the number of a colour
SHOWN: Final = 8      # values that an error lists
BLENDED: Final = "or where drawing or resizing blended them, save masks without smoothing, resized by the nearest pixel"

Color = tuple[int, int, int]
Value = int | Color


@dataclass(frozen=True)
class Labels:
    """What the values of masks mean: the class of a value, or of a colour, is its position here.

    values: 2 to 255 different integers, or as many different colours (red, green, blue).
    Raises TypeError or ValueError for anything else.
    """

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        values = tuple(_value(value) for value in self.values)
        if len({isinstance(value, tuple) for value in values}) > 1:
            raise ValueError(f"labels must be all integers or all colours, got {values}")
        if not 2 <= len(values) <= IGNORE:
            raise ValueError(f"labels must be 2 to {IGNORE} values, one for each class, got {len(values)}")
        if repeated := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(f"labels must differ, got {text_of(repeated[0])} more than once")
        contract.set_fields(self, values=values)

    @property
    def are_colors(self) -> bool:
        """Whether the values are colours."""
        return isinstance(self.values[0], tuple)


def _value(value: Any) -> Value:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return contract.integer("labels", value, -(2**31))
    if len(value) != 3:
        raise ValueError(f"labels must be integers or colours of 3 numbers, got {tuple(value)}")
    red, green, blue = (contract.integer("labels", part, 0) for part in value)
    if max(red, green, blue) >= 1 << SHIFT:
        raise ValueError(f"labels must be colours below {1 << SHIFT}, got {tuple(value)}")
    return red, green, blue


def parse_labels(text: str) -> tuple[Value, ...]:
    """The values in "0,128,255", or the colours in "0,0,0;255,0,0".

    >>> parse_labels("0,128,255"), parse_labels("0,0,0; 255,0,0")
    ((0, 128, 255), ((0, 0, 0), (255, 0, 0)))
    """
    try:
        groups = [tuple(int(number) for number in group.split(",")) for group in text.strip().rstrip(";").split(";")]
    except ValueError:
        shape = 'integers with commas between, or colours with semicolons between, as "0,0,0;255,0,0"'
        raise ValueError(f"labels must be {shape}, got {text!r}") from None
    if len(groups) == 1 and len(groups[0]) == 3 and (len({*groups[0]}) < 3 or text.rstrip().endswith(";")):
        raise ValueError(f'labels must be two colours or more, as "0,0,0;{text_of(groups[0])}", got one, {text!r}')
    return Labels(groups[0] if len(groups) == 1 else tuple(groups)).values   # type: ignore[arg-type]


def text_of(value: Value | str) -> str:
    """A value as the command line takes it.

    >>> text_of(128), text_of((255, 0, 0))
    ('128', '255,0,0')
    """
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def option_of(values: Sequence[Value | str]) -> str:
    """The option that makes classes of these values, in their order, and of more where there is one."""
    if len(values) == 1:
        values = [*values, "..."]
    if isinstance(values[0], tuple):
        return f'--labels "{";".join(map(text_of, values))}"'
    return f"--labels {','.join(map(text_of, values))}"


def shown(counts: Mapping[Any, int]) -> str:
    """Values and in how many pixels each is, the most frequent where there are too many to list.

    >>> shown({0: 90, 128: 10})
    '0 in 90 pixels, 128 in 10 pixels'
    """
    most = sorted(sorted(counts, key=lambda value: -counts[value])[:SHOWN])
    listed = ", ".join(f"{f'({text_of(v)})' if isinstance(v, tuple) else v} in {counts[v]} pixels" for v in most)
    return listed + (f" and {len(counts) - len(most)} more values" if len(counts) > len(most) else "")


def number_of(color: Color) -> int:
    """A colour as one number.

    >>> color_of(number_of((255, 3, 65535)))
    (255, 3, 65535)
    """
    return color[0] << 2 * SHIFT | color[1] << SHIFT | color[2]


def color_of(number: int) -> Color:
    """The colour that a number stands for."""
    largest = (1 << SHIFT) - 1
    return number >> 2 * SHIFT, number >> SHIFT & largest, number & largest


def check_values(counts: Mapping[Value, int]) -> None:
    """Raise ValueError where these values of masks, all integers or all colours, aren't class indices."""
    values = sorted(counts)
    fix = f"give them classes by {option_of(values if len(values) <= SHOWN else [*values[:2], '...'])}"
    if isinstance(values[0], tuple):
        raise ValueError(f"expected one value a pixel, got colours: {shown(counts)}; {fix}")
    if values[0] < 0:
        negative = [value for value in values if isinstance(value, int) and value < 0]
        ignore = f"save {negative[0]} as {IGNORE} if it marks pixels to ignore, or " if len(negative) == 1 else ""
        raise ValueError(f"expected whole numbers from 0 as classes, got {shown(counts)}; {ignore}{fix}")


def check_labelled(counts: Mapping[Value, int], labels: Labels) -> None:
    """Raise ValueError for values that `labels` doesn't hold, 255 as a value aside."""
    known = {*labels.values, *(() if labels.are_colors else (IGNORE,))}
    if unknown := {value: count for value, count in counts.items() if value not in known}:
        have = option_of(labels.values) if len(labels.values) <= SHOWN else f"{len(labels.values)} values of --labels"
        blended = f", {BLENDED}" if len(unknown) > SHOWN else ""
        raise ValueError(f"expected only values of {have}, got {shown(unknown)}: add them to --labels{blended}")
