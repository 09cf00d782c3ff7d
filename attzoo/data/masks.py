"""Reading of masks: the values that a file stores, and the class index of each value."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import describe
from .labels import (
    IGNORE,
    SHIFT,
    Color,
    Labels,
    Value,
    check_labelled,
    check_type,
    check_values,
    decode_color,
    encode_color,
    text_of,
)  # fmt: skip
from .source import FileInfo, naming


@dataclass(frozen=True)
class Stored:
    """The values that a mask's file stores, before they are converted to classes.

    Attributes:
        values: (*S), integers; if `are_colors`, each is a colour encoded by `labels.encode_color`.
        are_colors: whether `values` are encoded colours.
        info: the metadata of the file.
        palette: (K, 3), the colour of each palette index; None if the file has no palette or `are_colors`.
    """

    values: NDArray[np.int64]
    are_colors: bool
    info: FileInfo
    palette: NDArray[Any] | None = None

    def counts(self) -> Counter[Value]:
        """Return the number of pixels of each value."""
        unique, counts = np.unique(self.values, return_counts=True)
        return Counter(dict(zip(map(self.value, unique), map(int, counts), strict=True)))

    def value(self, stored: Any) -> Value:
        """Convert an element of `values` to an integer or a colour."""
        return decode_color(int(stored)) if self.are_colors else int(stored)

    def color(self, value: Value) -> Color:
        """Return the display colour of a value; black if it is beyond the palette."""
        if isinstance(value, tuple):
            return value
        if self.palette is None:
            return (int(self.info.greys(np.array(value))),) * 3
        red, green, blue = self.palette[value].tolist() if 0 <= value < len(self.palette) else (0, 0, 0)
        return red, green, blue


def read_stored(path: Path, labels: Labels | None = None) -> Stored:
    """Read a mask's file and return the values that it stores.

    The values are colours if `labels` are colours, or if the channels of the file differ; else they are integers.

    Args:
        path: the file.
        labels: the values of the classes; None if the values are class indices.

    Raises:
        ValueError: if the file cannot be read or its format changes values; if its channels differ and are not three;
            if only the opacity differs between pixels; if all colours of its palette are equal; if pixels have the
            value that the file declares as no data; or if a value is not an integer. The message names the file.
    """
    info = describe_mask(path)
    with naming(path):
        array = info.samples()
        if labels is None:
            _check_data(array, info.no_data)
        if info.opacity is not None:
            array = _without_opacity(array, info.opacity)
        palette = info.palette
        by_color = labels is not None and labels.are_colors
        if palette is not None and (by_color or not info.has_stable_indices):
            array, palette = _in_colors(array, palette), None
        elif by_color and len(array) == 1:
            array = info.greys(_integers(array))
        array = _integers(array)
        if by_color or (array != array[:1]).any():
            return Stored(_color_codes(array), True, info)
        return Stored(array[0], False, info, palette)


def _check_data(array: NDArray[Any], no_data: float | None) -> None:
    """Raise ValueError if pixels of a mask have the value that its file declares as no data, which may be a class.

    Args:
        array: (C, *S), the samples.
        no_data: the declared value; None if the file declares none.
    """
    if no_data in (None, IGNORE) or not (count := np.count_nonzero(array == no_data)):
        return
    fix = f"save these pixels as {IGNORE} to ignore them, or make them a class by adding {no_data:.10g} to --labels"
    got = f"{count} pixels of {no_data:.10g}, which the file declares as no data (GDAL_NODATA)"
    raise ValueError(f"expected a class in every pixel, got {got}: {fix}")


def _without_opacity(array: NDArray[Any], opacity: int) -> NDArray[Any]:
    """Return the channels (C, *S) of a mask without the channel of index `opacity`, (C - 1, *S).

    Raises:
        ValueError: if the other channels are constant and the opacity is not.
    """
    channels = np.delete(array, opacity, axis=0)
    if _is_constant(channels) and not _is_constant(array):
        got = f"one value, {text_of(tuple(channels.reshape(len(channels), -1)[:, 0].tolist()))}, in all pixels"
        fix = "if the opacity (alpha channel) has the classes, save it as a grey mask"
        raise ValueError(f"expected classes in grey or colours, got {got}, and varying opacity: {fix}")
    return channels


def _in_colors(indices: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """Return the colours (3, *S) of palette indices (1, *S); `palette` is (K, 3).

    Raises:
        ValueError: if there are different indices and all have the same colour.
    """
    colors: NDArray[Any] = np.moveaxis(palette[indices[0]], -1, 0)
    if _is_constant(colors) and not _is_constant(indices):
        got = f"one colour, {text_of(tuple(palette[indices.flat[0]].tolist()))}, for all indices"
        raise ValueError(f"expected a palette of different colours, got {got}: save the indices as grey")
    return colors


def _is_constant(array: NDArray[Any]) -> bool:
    """Whether each channel of an array (C, *S) has only one value."""
    flat = array.reshape(len(array), -1)
    return bool((flat == flat[:, :1]).all())


def describe_mask(path: Path) -> FileInfo:
    """Return the metadata of a mask's file.

    Raises:
        ValueError: if the file cannot be read, or its format changes values. The message names the file.
    """
    with naming(path):
        info = describe(path)
        if info.not_a_mask:
            raise ValueError(info.not_a_mask)
        return info


def _integers(array: NDArray[Any]) -> NDArray[np.int64]:
    """Return the values as int64. Raise ValueError if a value is not an integer."""
    with np.errstate(invalid="ignore"):   # NaN, which the comparison below detects
        integers: NDArray[np.int64] = array.astype(np.int64)
    if (is_fraction := integers != array).any():
        fix = f"save the class of each pixel, for example by a threshold or argmax, and {IGNORE} for no class"
        raise ValueError(f"expected integers >= 0 as classes, got {array[is_fraction].flat[0]}: {fix}")
    return integers


def _color_codes(array: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return colours (3, *S), or grey (1, *S), encoded as one integer per pixel, (*S).

    Raises:
        ValueError: if there are not 1 or 3 channels, or a value is not in 0 to 65535.
    """
    if len(array) not in (1, 3):
        fix = "if each channel is a class, save the argmax over channels; if three channels are RGB, save only these"
        raise ValueError(f"expected one channel, equal channels or RGB, got {len(array)} different channels: {fix}")
    if array.min() < 0 or array.max() >= 1 << SHIFT:
        fix = "save masks in grey or in colours of 8 or 16 bits"
        raise ValueError(f"expected colours from 0 to {(1 << SHIFT) - 1}, got {array.min()} to {array.max()}: {fix}")
    red, green, blue = array if len(array) == 3 else (array[0],) * 3
    return np.asarray(red << 2 * SHIFT | green << SHIFT | blue)


# ---- classes ---------------------------------------------------------------------------------------


def read_mask(path: str | Path, labels: Labels | None = None) -> NDArray[np.int64]:
    """Read a mask's file and return the class index of each pixel, (*S).

    Without `labels`, the class of a pixel is the stored value or, in a file with a palette, the palette index. If there
    are several channels, they must be equal; opacity is ignored. With `labels`, the class of a value is its index in
    `labels`, and 255 stays 255 unless it is in `labels`.

    Args:
        path: the file.
        labels: the values of the classes; None if the values are class indices.

    Raises:
        TypeError: if `labels` has another type.
        ValueError: if a value has no class, or for the causes of `read_stored`. The message names the file, the values
            and the option `--labels`.
    """
    check_type(labels)
    path = Path(path)
    stored = read_stored(path, labels)
    with naming(path):
        if labels is None:
            if stored.are_colors or stored.values.min() < 0:
                check_values(stored.counts())
            return stored.values
        if stored.are_colors and not labels.are_colors:
            check_labelled(stored.counts(), labels)
        return _classes_of(stored, labels)


def _classes_of(stored: Stored, labels: Labels) -> NDArray[np.int64]:
    """Return the class of each pixel, (*S): the index of its value in `labels`, or 255 for 255 if not in `labels`.

    Raises:
        ValueError: if a value other than 255 is not in `labels`.
    """
    values = [encode_color(value) if isinstance(value, tuple) else value for value in labels.values]
    order = np.argsort(values)
    sorted_values = np.array(values)[order]
    index = np.minimum(np.searchsorted(sorted_values, stored.values), len(values) - 1)
    is_known = sorted_values[index] == stored.values
    mask = np.where(is_known, order[index], IGNORE)
    if not is_known.all():
        check_labelled(stored.counts(), labels)
    return np.asarray(mask, np.int64)
