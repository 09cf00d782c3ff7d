"""Masks as class indices: the values that a file stores, and what `labels` says they mean."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import describe
from .labels import IGNORE, SHIFT, Color, Labels, Value, check_labelled, check_values, color_of, number_of, text_of
from .source import Source, naming


@dataclass(frozen=True)
class Stored:
    """What a mask's file stores: values (*S), or where `are_colors` the numbers of colours.

    palette: colours by value, where the file has a palette and the values are its indices.
    """

    values: NDArray[np.int64]
    are_colors: bool
    source: Source
    palette: NDArray[Any] | None = None

    def counts(self) -> Counter[Value]:
        """The pixels of each value."""
        unique, counts = np.unique(self.values, return_counts=True)
        return Counter(dict(zip(map(self.value, unique), map(int, counts), strict=True)))

    def value(self, stored: Any) -> Value:
        """One of `values` as an integer, or as a colour."""
        return color_of(int(stored)) if self.are_colors else int(stored)

    def color(self, value: Value) -> Color:
        """The colour that a value is shown in; black for one beyond the palette."""
        if isinstance(value, tuple):
            return value
        if self.palette is None:
            return (int(self.source.greys(np.array(value))),) * 3
        red, green, blue = self.palette[value].tolist() if 0 <= value < len(self.palette) else (0, 0, 0)
        return red, green, blue


def read_stored(path: Path, labels: Labels | None = None) -> Stored:
    """What a mask's file stores, by colours where `labels` are colours, or where its channels differ.

    Raises ValueError, naming the file, for one that can't be read, whose format doesn't keep numbers, whose channels
    are neither equal nor the three of a colour, which has one colour in many opacities, or that holds anything but
    whole numbers.
    """
    source = describe_mask(path)
    with naming(path):
        array = source.samples()
        if labels is None:
            _check_data(array, source.no_data)
        if source.opacity is not None:
            array = _without_opacity(array, source.opacity)
        palette = source.palette
        by_color = labels is not None and labels.are_colors
        if palette is not None and (by_color or not source.has_stable_indices):
            array, palette = _in_colors(array, palette), None
        elif by_color and len(array) == 1:
            array = source.greys(_whole(array))
        array = _whole(array)
        if by_color or (array != array[:1]).any():
            return Stored(_numbers(array), True, source)
        return Stored(array[0], False, source, palette)


def _check_data(array: NDArray[Any], no_data: float | None) -> None:
    """Raise ValueError for pixels that the file declares as no data, which may be a class or none."""
    if no_data in (None, IGNORE) or not (count := np.count_nonzero(array == no_data)):
        return
    fix = f"save them as {IGNORE} to ignore them, or make them a class by --labels with {no_data:.10g} in it"
    got = f"{count} of {no_data:.10g}, which the file declares as no data (GDAL_NODATA)"
    raise ValueError(f"expected a class in every pixel, got {got}: {fix}")


def _without_opacity(array: NDArray[Any], opacity: int) -> NDArray[Any]:
    """The other channels. Raises ValueError where they hold one value, and only opacity differs."""
    others = np.delete(array, opacity, axis=0)
    if _is_constant(others) and not _is_constant(array):
        got = f"the same, {text_of(tuple(others.reshape(len(others), -1)[:, 0].tolist()))}, in all pixels"
        fix = "where opacity says what is where, save it as the mask, without other channels"
        raise ValueError(f"expected classes in grey or colours, got {got}, and opacity that differs: {fix}")
    return others


def _in_colors(indices: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """(1, *S) -> (3, *S). Raises ValueError where different indices all have one colour."""
    colors: NDArray[Any] = np.moveaxis(palette[indices[0]], -1, 0)
    if _is_constant(colors) and not _is_constant(indices):
        got = f"one colour, {text_of(tuple(palette[indices.flat[0]].tolist()))}, for all of them"
        raise ValueError(f"expected a palette that tells indices apart, got {got}: save the indices as grey")
    return colors


def _is_constant(array: NDArray[Any]) -> bool:
    """Whether each channel holds one value."""
    flat = array.reshape(len(array), -1)
    return bool((flat == flat[:, :1]).all())


def describe_mask(path: Path) -> Source:
    """What the head of a mask's file declares.

    Raises ValueError, naming the file, for one that can't be read, or whose format doesn't keep numbers.
    """
    with naming(path):
        source = describe(path)
        if source.not_a_mask:
            raise ValueError(source.not_a_mask)
        return source


def _whole(array: NDArray[Any]) -> NDArray[np.int64]:
    with np.errstate(invalid="ignore"):   # of what is no number, which the comparison finds
        whole: NDArray[np.int64] = array.astype(np.int64)
    if (wrong := whole != array).any():
        fix = f"save the class of each pixel, as a threshold or argmax gives it, and {IGNORE} where there is none"
        raise ValueError(f"expected whole numbers from 0 as classes, got {array[wrong].flat[0]}: {fix}")
    return whole


def _numbers(array: NDArray[np.int64]) -> NDArray[np.int64]:
    """Channels (3, *S), or equal ones (1, *S), -> (*S): a number for every colour."""
    if len(array) not in (1, 3):
        hint = "of a mask with a channel for each class save the index of the class, as from argmax"
        extra = "leave out extra samples beside a colour's"
        got = f"{len(array)} that differ; {hint}; {extra}"
        raise ValueError(f"expected one channel, equal ones or a colour's three, got {got}")
    if array.min() < 0 or array.max() >= 1 << SHIFT:
        raise ValueError(f"expected colours from 0 to {(1 << SHIFT) - 1}, got {array.min()} to {array.max()}")
    red, green, blue = array if len(array) == 3 else (array[0],) * 3
    return np.asarray(red << 2 * SHIFT | green << SHIFT | blue)


# ---- classes ---------------------------------------------------------------------------------------


def read_mask(path: str | Path, labels: Labels | None = None) -> NDArray[np.int64]:
    """The class indices (*S) in a file.

    Stored values are classes, an index into a palette too; where the file has several channels they must be equal,
    opacity aside. With `labels` a value's class is its position there, and 255, unless it is there, stays 255.
    Raises ValueError, naming the file, the values found and the option that says what they mean, for any other value,
    and as `read_stored`.
    """
    path = Path(path)
    stored = read_stored(path, labels)
    with naming(path):
        if labels is None:
            if stored.are_colors or stored.values.min() < 0:
                check_values(stored.counts())
            return stored.values
        if stored.are_colors and not labels.are_colors:
            check_labelled(stored.counts(), labels)
        return _positions(stored, labels)


def _positions(stored: Stored, labels: Labels) -> NDArray[np.int64]:
    """The class of each pixel, 255 for a value 255 that is none."""
    values = [number_of(value) if isinstance(value, tuple) else value for value in labels.values]
    order = np.argsort(values)
    ranked = np.array(values)[order]
    found = np.minimum(np.searchsorted(ranked, stored.values), len(values) - 1)
    is_known = ranked[found] == stored.values
    mask = np.where(is_known, order[found], IGNORE)
    if not is_known.all():
        check_labelled(stored.counts(), labels)
    return np.asarray(mask, np.int64)
