"""Checks that images fit their masks and each other, from what their files declare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..data import FileInfo, Geometry, check_same_grid, check_same_map, describe_image, describe_mask, transposes
from ..plotting import size_text
from .files import Pair
from .preparation import Preparation

RESIZE: Final = ": resize the mask by the nearest pixel, or take the image that it was drawn on"


def describe_pairs(pairs: Sequence[Pair]) -> tuple[list[FileInfo], list[Geometry]]:
    """Check that images and masks fit. Return what the file of each image declares, and the geometries of volumes.

    Raises:
        ValueError: with the paths, unless all images have the same number of channels and axes, and each mask has the
            size, orientation, voxel grid and map coordinates of its image.
    """
    sources: list[FileInfo] = []
    geometries: list[Geometry] = []
    first = pairs[0][0]
    for image, mask in pairs:
        source, mask_source = describe_image(image), describe_mask(mask)
        sources.append(source)
        shape, expected = source.image_shape, sources[0].image_shape
        if len(shape) != len(expected):
            got = f"{first} of {len(expected) - 1} and {image} of {len(shape) - 1}"
            raise ValueError(f"expected images of the same number of axes, got {got}: keep pictures and volumes apart")
        if shape[0] != expected[0]:
            got = f"{first} of {expected[0]} and {image} of {shape[0]}"
            raise ValueError(f"expected images of the same number of channels, got {got}: save all as grey or as RGB")
        if mask_source.shape[1:] != shape[1:]:
            hint = _orientation_hint(source, mask_source) or _axes_hint(image, shape, mask_source.shape) or RESIZE
            got = f"{size_text(mask_source.shape[1:])}{hint}"
            raise ValueError(f"expected {mask} of its image's size, {size_text(shape[1:])}, got {got}")
        _check_orientation(image, source, mask, mask_source)
        check_same_map(image, source, mask, mask_source)
        if geometry := check_same_grid(image, mask):
            geometries.append(geometry)
    return sources, geometries


def check_scales(preparation: Preparation, images: Sequence[tuple[Path, np.dtype[Any]]]) -> None:
    """Raise ValueError, with two paths, unless the preparation maps all images to one scale of values."""
    first, first_dtype = images[0]
    for image, dtype in images:
        if preparation.scale(dtype) != preparation.scale(first_dtype):
            got = f"{first} of {first_dtype} and {image} of {dtype}"
            fix = "convert all to one dtype, or set --normalise zscore"
            raise ValueError(f"expected images of one scale for --normalise {preparation.normalise}, got {got}: {fix}")


def _axes_hint(image: Path, shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> str:
    """Return a hint if an array was probably saved with other axes than those that it is read with, else ''.

    Args:
        image: the path of the image.
        shape: (C, *S) of the image.
        mask_shape: (1, *S) of the mask, of another size.
    """
    if len(shape) == 4 and shape[0] == 1 and min(shape[1], shape[-1]) <= 4:
        fix = "save a picture (H, W, C) as PNG or TIFF"
        return f": {image} holds three axes, which are read as a volume (D, H, W); {fix}"
    stored = (*shape[1:], shape[0])
    if len(shape) == 4 and stored[1:] == mask_shape[1:]:
        return f": {image} holds {size_text(stored)}; save channels as the last axis, (D, H, W, C)"
    if [side for side in shape[1:] if side > 1] == [side for side in mask_shape[1:] if side > 1]:
        return ": save both arrays with the same axes, (H, W) or (D, H, W)"
    return ""


def _orientation_hint(image: FileInfo, mask: FileInfo) -> str:
    """Return the orientations that an image and its mask declare, or '' if both are upright."""
    if image.orientation == mask.orientation == 1:
        return ""
    return f", both upright: the image declares orientation {image.orientation}, the mask {mask.orientation}"


def _check_orientation(image: Path, source: FileInfo, mask: Path, mask_source: FileInfo) -> None:
    """Raise ValueError if image and mask declare different orientations, unless their sizes show that both are right.

    If one orientation swaps the axes and the other does not, equal sizes of an upright image that is not square show
    that both are right.
    """
    first, second = source.orientation, mask_source.orientation
    is_clear = transposes(first) != transposes(second) and len(set(source.shape[1:])) > 1
    if first != second and not is_clear:
        got = f"orientation {first} in {image} and {second} in {mask}, so that only one of them may be rotated"
        fix = "save both upright, without an orientation"
        raise ValueError(f"expected an image and mask of one orientation, got {got}: {fix}")
