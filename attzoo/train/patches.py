"""Random patches of images and masks, for training on images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..contract import Array
from ..data import IGNORE
from .data import Folder, Key, Sample

BACKGROUND: Final = 0   # the class that is not foreground
CORNER_SEED: Final = 1   # makes the random numbers of corners independent of those of flips


@dataclass(frozen=True)
class _Image:
    """The image of a folder that patches are taken from.

    Attributes:
        index: its position in the folder.
        image: float32 (C, *S), prepared.
        mask: uint8 (*S), the class of each pixel.
        counts: the number of pixels of each class in each slice along the first spatial axis, (S[0], 256).
    """

    index: int
    image: Array
    mask: NDArray[np.uint8]
    counts: NDArray[np.int64]


class Patches:
    """A dataset of random patches of the images in a folder. Its indices are count * (index of the image) + 0, 1, ...

    A patch depends only on the seed of the folder and its key (epoch, index). The folder changes it at random.
    Images are normalised before patches are taken. An image that is smaller than a patch along an axis is padded on
    both sides, with 0 after its normalisation, and its mask with 255, which is ignored.

    Patches of one image should be read one after the other: the last image stays in memory, in float32 with a mask of
    one byte per pixel, and no other image does.

    Args:
        folder: the images and masks.
        size: the spatial size of a patch.
        count: the number of patches of each image in an epoch, >= 1.
        foreground: the probability that a patch has a random foreground pixel at its center, see `random_corner`.

    Raises:
        ValueError: `size` has not one number for each spatial axis.
    """

    def __init__(self, folder: Folder, size: Sequence[int], count: int, foreground: float) -> None:
        self.channels, self.spatial_dims, self.classes = folder.channels, folder.spatial_dims, folder.classes
        if len(size) != folder.spatial_dims:
            raise ValueError(f"size must be {folder.spatial_dims} numbers, one per spatial axis, got {size}")
        self.folder, self.size, self.count, self.foreground = folder, tuple(size), count, foreground
        self._last: _Image | None = None

    def __len__(self) -> int:
        """Return the number of patches in an epoch."""
        return len(self.folder) * self.count

    def __getitem__(self, key: Key) -> Sample:
        """Return a patch of an image, float32 (C, *size), and of its mask, int64 (*size). Raises errors of `Folder`."""
        epoch, index = key
        source = self._read(index // self.count)
        generator = np.random.default_rng((self.folder.seed, epoch, index, CORNER_SEED))
        corner = random_corner(source.mask, source.counts, self.size, self.foreground, generator)
        image = crop(source.image, corner, self.size, 0)
        mask = crop(source.mask, corner, self.size, IGNORE).astype(np.int64)
        return self.folder.changed(image, mask, key)

    def common_size(self) -> tuple[int, ...]:
        """Return the spatial size of every patch."""
        return self.size

    def _read(self, index: int) -> _Image:
        """Return an image of the folder, prepared, with its mask, and keep it until another is read."""
        if self._last is None or self._last.index != index:
            self._last = None   # frees its memory before the next is read
            image, mask = self.folder.prepared(index)
            small_mask = mask.astype(np.uint8)
            self._last = _Image(index, image, small_mask, class_counts_by_slice(small_mask))
        return self._last


def class_counts_by_slice(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of pixels of each value in each slice of a mask (*S) along its first axis, (S[0], 256)."""
    return np.stack([np.bincount(part.ravel(), minlength=256) for part in mask])


def random_corner(
    mask: NDArray[np.uint8],
    counts: NDArray[np.int64],
    size: Sequence[int],
    foreground: float,
    generator: np.random.Generator,
) -> tuple[int, ...]:
    """Return the position in the image of the first pixel of a random patch.

    With probability `foreground`, and if the mask has foreground, the center of the patch is a random pixel of a random
    foreground class, or as near to that pixel as the borders of the image allow. Each foreground class of the mask has
    the same probability, as in nnU-Net (Isensee et al., Nature Methods 2021). Otherwise all positions inside the image
    have the same probability.

    Along an axis in which the image is smaller than the patch, the image is in the middle of the patch: the position is
    negative, or 0 if the difference is one pixel.

    Args:
        mask: the class of each pixel, (*S). Class 0 is background, and 255 is ignored.
        counts: `class_counts_by_slice(mask)`.
        size: the spatial size of the patch.
        foreground: the probability, in [0, 1].
        generator: yields the random numbers.
    """
    center = _random_foreground(mask, counts, generator) if generator.random() < foreground else None
    last_corners = [side - patch_side for side, patch_side in zip(mask.shape, size, strict=True)]
    if center is None:
        return tuple(int(generator.integers(last + 1)) if last > 0 else _centered(last) for last in last_corners)
    starts = [position - side // 2 for position, side in zip(center, size, strict=True)]
    return tuple(
        min(max(start, 0), last) if last > 0 else _centered(last)
        for start, last in zip(starts, last_corners, strict=True)
    )


def _centered(difference: int) -> int:
    """Return the first pixel of a patch around an image. `difference` <= 0: the side of the image minus the patch's."""
    return -(-difference // 2)


def _random_foreground(
    mask: NDArray[np.uint8], counts: NDArray[np.int64], generator: np.random.Generator
) -> tuple[int, ...] | None:
    """Return a random pixel of a random foreground class, None without foreground. Arguments as `random_corner`."""
    totals = counts.sum(axis=0)
    classes = [int(k) for k in np.flatnonzero(totals) if k not in (BACKGROUND, IGNORE)]
    if not classes:
        return None
    k = classes[generator.integers(len(classes))]
    number = int(generator.integers(totals[k]))   # of the pixel, among those of class k
    ends = counts[:, k].cumsum()
    first = int(np.searchsorted(ends, number, side="right"))
    positions = np.flatnonzero(mask[first] == k)
    position = positions[number - (ends[first] - counts[first, k])]
    return (first, *map(int, np.unravel_index(position, mask.shape[1:])))


def crop(array: NDArray[Any], corner: Sequence[int], size: Sequence[int], value: int) -> NDArray[Any]:
    """Return a copy of a patch of an array (..., *S): (..., *size). Pixels outside of the array have a given value.

    corner: the position in the array of the first pixel of the patch, which may be negative. The patch must overlap the
    array.
    """
    leading_axes = array.shape[: array.ndim - len(size)]
    patch: NDArray[Any] = np.full((*leading_axes, *size), value, array.dtype)
    sources: list[Any] = [...]
    targets: list[Any] = [...]
    for start, side, length in zip(corner, size, array.shape[len(leading_axes) :], strict=True):
        first, end = max(start, 0), min(start + side, length)
        sources.append(slice(first, end))
        targets.append(slice(first - start, end - start))
    patch[tuple(targets)] = array[tuple(sources)]
    return patch
