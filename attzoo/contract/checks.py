"""Check arguments and shapes. Errors have the expected value, the value that was passed, and a remedy."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ..hints import nearest
from .arrays import Shape

# isinstance gets tuples here, because torch.compile of 2.6 cannot trace a union of types


def integer(name: str, value: Any, minimum: int = 1) -> int:
    """Return an integer >= minimum as int.

    Raises TypeError for bool and other types, and ValueError for smaller integers. `name` is the name of the argument.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {short_repr(value)}")
    if number < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {short_repr(number)}")
    return number


def integers(name: str, values: Any) -> tuple[int, ...]:
    """Return integers >= 1 as a tuple of int. Raise TypeError for other types, and the errors of `integer`."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, got {short_repr(values)}")
    return tuple(integer(name, value) for value in values)


def check_groups(channels: int, groups: int, parts: int = 1) -> None:
    """Raise ValueError unless the channels divide into groups of `parts` equal parts each.

    The error names the nearest numbers of channels, and all numbers of groups, that would do.
    """
    unit = parts * groups
    if channels % unit == 0:
        return
    product = f"{parts} * groups = {unit}" if parts > 1 else f"groups = {unit}"
    nearest_counts = [str(n) for n in (channels // unit * unit, -(-channels // unit) * unit) if n]
    fix = f"give {' or '.join(nearest_counts)} channels"
    if divisors := [str(n) for n in range(1, channels // parts + 1) if channels % (parts * n) == 0]:
        fix = f"{fix}, or groups={shorten(' or '.join(divisors), 200)}"
    raise ValueError(f"channels must be a multiple of {product}, got {channels}: {fix}")


def odd(name: str, value: Any) -> int:
    """Return an odd integer >= 1 as int. Raise the errors of `integer`, and ValueError if `value` is even."""
    number = integer(name, value)
    if number % 2 == 0:
        raise ValueError(f"{name} must be odd, got {number}")
    return number


def number(name: str, value: Any) -> float:
    """Return a finite number as float. Raise TypeError for bool and other types, ValueError for nan and infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {short_repr(value)}")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {short_repr(value)}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """Return a finite number > 0 as float. Raise the errors of `number`, and ValueError for other numbers."""
    result = number(name, value)
    if result <= 0:
        raise ValueError(f"{name} must be > 0, got {short_repr(value)}")
    return result


def positives(name: str, values: Any) -> tuple[float, ...]:
    """Return finite numbers > 0 as a tuple of float. Raise TypeError for other types, and the errors of `positive`."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of numbers, got {short_repr(values)}")
    return tuple(positive(name, value) for value in values)


def flag(name: str, value: Any) -> bool:
    """Return True or False as bool. Raise TypeError for other types."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {short_repr(value)}")
    return bool(value)


def choice(name: str, value: Any, options: Sequence[Any]) -> Any:
    """Return the element of `options` that equals `value`.

    NumPy integers equal ints. True and 1.0 do not equal 1. For other values raise ValueError, with the nearest element.
    """
    python_value = value
    if not isinstance(value, (bool, np.bool_)):
        with suppress(TypeError):
            python_value = operator.index(value)
    for option in options:
        same_boolness = isinstance(python_value, bool) == isinstance(option, bool)   # in Python True == 1
        same_type = isinstance(python_value, type(option)) and same_boolness
        if same_type and option == python_value:
            return option
    got = short_repr(value) + nearest(value, options)
    raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {got}")


def check_shape(
    shape: Shape, channels: int, spatial_dims: int | None, channels_last: bool, least: Sequence[int] = ()
) -> None:
    """Raise ValueError unless shape is (N, C, *S), or (N, *S, C) with channels_last.

    Args:
        shape: the shape. None stands for a size that is not known yet, and is accepted.
        channels: C.
        spatial_dims: the number of spatial axes; None accepts 1, 2 and 3.
        channels_last: whether C is the last axis.
        least: the smallest size of each spatial axis, 1 by default.

    """
    count = len(shape) - 2
    space = tuple(shape)[1:-1] if channels_last else tuple(shape)[2:]
    if (
        (count == spatial_dims if spatial_dims else 1 <= count <= 3)
        and shape[-1 if channels_last else 1] in (channels, None)
        and all(size is None or size >= low for size, low in zip(space, least or (1,) * count, strict=True))
    ):
        return
    axes_text = f"{spatial_dims} spatial axes" if spatial_dims else "1 to 3 spatial axes"
    layout_text = f"(N, *S, {channels})" if channels_last else f"(N, {channels}, *S)"
    sizes_text = f"at least {tuple(least)}" if any(low > 1 for low in least) else "at least 1 each"
    hint = _other_layout(shape, channels, spatial_dims, channels_last)
    hint = hint or _no_batch(shape, channels, spatial_dims, channels_last)
    raise ValueError(f"expected {layout_text} with {axes_text} of {sizes_text}, got {tuple(shape)}{hint}")


def _other_layout(shape: Shape, channels: int, spatial_dims: int | None, channels_last: bool) -> str:
    """Return the hint for a shape that is valid with channels in the other position; "" for any other shape.

    Arguments are those of `check_shape`.
    """
    has_rank = len(shape) - 2 in ((spatial_dims,) if spatial_dims else (1, 2, 3))
    axis, other_axis = (-1, 1) if channels_last else (1, -1)
    if not has_rank or shape[other_axis] != channels or shape[axis] in (channels, None):
        return ""
    if channels_last:
        return ", which is channels first: set data_format='channels_first', or move axis 1 to the end"
    return ", which is channels last: move the last axis to position 1, as x.movedim(-1, 1) does in torch"


def _no_batch(shape: Shape, channels: int, spatial_dims: int | None, channels_last: bool) -> str:
    """Return the hint for the shape of one sample without a batch axis; "" for any other shape.

    Arguments are those of `check_shape`.
    """
    has_rank = len(shape) - 1 in ((spatial_dims,) if spatial_dims else (1, 2, 3))
    if not has_rank or shape[-1 if channels_last else 0] != channels:
        return ""
    return ", which looks like one sample without the batch axis: add it, as x[None] does"


def shorten(text: str, max_length: int = 400) -> str:
    """Return a text shortened to `max_length` characters for an error message, by leaving out its middle.

    >>> shorten("abcdefghijkl", 9)
    'abc...jkl'
    """
    half_length = (max_length - 3) // 2
    return text if len(text) <= max_length else f"{text[:half_length]}...{text[len(text) - half_length :]}"


def short_repr(value: Any) -> str:
    """Return the repr of a value, shortened for an error message."""
    return shorten(repr(value))
