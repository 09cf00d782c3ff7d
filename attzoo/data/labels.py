"""The option `--labels`: the classes of mask values that are not class indices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .. import contract

IGNORE: Final = 255   # the class index that losses and metrics ignore
SHIFT: Final = 16     # bits of one channel in the integer code of a colour
MAX_LISTED: Final = 8      # largest number of values that an error lists
BLENDING_HINT: Final = (
    "or if smoothing or resizing made these values, save masks without smoothing and resize by nearest neighbour"
)

Color = tuple[int, int, int]
Value = int | Color


@dataclass(frozen=True)
class Labels:
    """The values of masks, in the order of their classes.

    Attributes:
        values: 2 to 255 distinct integers, or as many distinct colours (red, green, blue). The class of a value is its
            index.

    Raises:
        TypeError: if `values` is no sequence, or a value is no integer or colour.
        ValueError: if the values are too few, too many, repeated, mixed or out of range.
    """

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        given: Any = self.values
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise TypeError(f"labels must be a sequence of integers or colours, got {contract.short_repr(given)}")
        values = tuple(_value(value) for value in self.values)
        if len({isinstance(value, tuple) for value in values}) > 1:
            raise ValueError(f"labels must be all integers or all colours, got {contract.short_repr(values)}")
        if not 2 <= len(values) <= IGNORE:
            raise ValueError(f"labels must be 2 to {IGNORE} values, one for each class, got {len(values)}")
        if repeated := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(f"labels must differ, got {text_of(repeated[0])} more than once")
        contract.set_fields(self, values=values)

    @property
    def are_colors(self) -> bool:
        """Whether the values are colours."""
        return isinstance(self.values[0], tuple)


def check_type(labels: Any) -> None:
    """Raise TypeError unless `labels` is None or of type `Labels`."""
    if labels is not None and not isinstance(labels, Labels):
        got = contract.short_repr(labels)
        raise TypeError(f"labels must be attzoo.data.Labels, such as Labels((0, 255)), got {got}")


def _value(value: Any) -> Value:
    """Return a label as an integer >= -2**31, or as a colour, three integers from 0 to 65535.

    Raises:
        TypeError: if the label, or a number of a colour, is not an integer.
        ValueError: if a number is out of range, or a colour has not three numbers.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return contract.integer("labels", value, -(2**31))
    if len(value) != 3:
        got = contract.short_repr(tuple(value))
        raise ValueError(f"labels must be integers or colours of 3 numbers, got {got}: give red, green and blue")
    red, green, blue = (contract.integer("labels", channel, 0) for channel in value)
    if max(red, green, blue) >= 1 << SHIFT:
        raise ValueError(f"labels must be colours of numbers from 0 to {(1 << SHIFT) - 1}, got {tuple(value)}")
    return red, green, blue


def parse_labels(text: str) -> tuple[Value, ...]:
    """Parse the text of the option `--labels`; return the values in the order of their classes.

    The text has integers such as "0,128,255", or colours such as "0,0,0;255,0,0".

    Raises:
        ValueError: if the text has another form or a single colour, or if its values are invalid as `Labels`.

    >>> parse_labels("0,128,255"), parse_labels("0,0,0; 255,0,0")
    ((0, 128, 255), ((0, 0, 0), (255, 0, 0)))
    """
    try:
        groups = [tuple(int(number) for number in group.split(",")) for group in text.strip().rstrip(";").split(";")]
    except ValueError:
        expected = 'integers separated by commas, or colours separated by semicolons, such as "0,0,0;255,0,0"'
        raise ValueError(f"labels must be {expected}, got {text!r}") from None
    if len(groups) == 1 and len(groups[0]) == 3 and (len({*groups[0]}) < 3 or text.rstrip().endswith(";")):
        expected = f'two or more colours, such as "0,0,0;{text_of(groups[0])}"'
        raise ValueError(f"labels must be {expected}, got one colour, {text!r}")
    return Labels(groups[0] if len(groups) == 1 else tuple(groups)).values   # type: ignore[arg-type]


def text_of(value: Value | str) -> str:
    """Return a value of a mask, an integer, a colour or "...", as text in the syntax of the option `--labels`.

    >>> text_of(128), text_of((255, 0, 0))
    ('128', '255,0,0')
    """
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def option_of(values: Sequence[Value | str]) -> str:
    """Return the text of the option `--labels` with these values, as a user types it. "..." follows a single value."""
    if len(values) == 1:
        values = [*values, "..."]
    if isinstance(values[0], tuple):
        return f'--labels "{";".join(map(text_of, values))}"'
    return f"--labels {','.join(map(text_of, values))}"


def shown(counts: Mapping[Any, int]) -> str:
    """Return values and their numbers of pixels as text for a message; only the MAX_LISTED most frequent.

    Args:
        counts: number of pixels of each value.

    >>> shown({0: 90, 128: 10})
    '0 in 90 pixels, 128 in 10 pixels'
    """
    most_frequent = sorted(sorted(counts, key=lambda value: -counts[value])[:MAX_LISTED])
    names = [f"({text_of(value)})" if isinstance(value, tuple) else value for value in most_frequent]
    texts = [f"{name} in {counts[value]} pixels" for name, value in zip(names, most_frequent, strict=True)]
    remaining = len(counts) - len(most_frequent)
    return ", ".join(texts) + (f" and {remaining} more values" if remaining else "")


def encode_color(color: Color) -> int:
    """Return a colour encoded as one integer, with 16 bits for each of red, green and blue.

    >>> decode_color(encode_color((255, 3, 65535)))
    (255, 3, 65535)
    """
    return color[0] << 2 * SHIFT | color[1] << SHIFT | color[2]


def decode_color(number: int) -> Color:
    """Return the colour (red, green, blue) that `encode_color` encoded as an integer."""
    largest = (1 << SHIFT) - 1
    return number >> 2 * SHIFT, number >> SHIFT & largest, number & largest


def check_values(counts: Mapping[Value, int]) -> None:
    """Raise ValueError if the values of a mask are colours or negative, and so are not class indices.

    Args:
        counts: number of pixels of each value; the values are all integers or all colours.
    """
    values = sorted(counts)
    fix = f"set their classes with {option_of(values if len(values) <= MAX_LISTED else [*values[:2], '...'])}"
    if isinstance(values[0], tuple):
        raise ValueError(f"expected one integer per pixel, got colours: {shown(counts)}; {fix}")
    if values[0] < 0:
        negative = [value for value in values if isinstance(value, int) and value < 0]
        ignore = f"if {negative[0]} marks pixels to ignore, save it as {IGNORE}; else " if len(negative) == 1 else ""
        raise ValueError(f"expected integers >= 0 as classes, got {shown(counts)}; {ignore}{fix}")


def check_labelled(counts: Mapping[Value, int], labels: Labels) -> None:
    """Raise ValueError if a mask has values that are not in `labels`; the integer 255, to ignore, is allowed.

    Args:
        counts: number of pixels of each value.
        labels: the values of the classes.
    """
    known_values = {*labels.values, *(() if labels.are_colors else (IGNORE,))}
    if unknown := {value: count for value, count in counts.items() if value not in known_values}:
        is_short = len(labels.values) <= MAX_LISTED
        expected = option_of(labels.values) if is_short else f"the {len(labels.values)} in --labels"
        blended_text = f", {BLENDING_HINT}" if len(unknown) > MAX_LISTED else ""
        fix = f"add these values to --labels{blended_text}"
        raise ValueError(f"expected only values of {expected}, got {shown(unknown)}: {fix}")
