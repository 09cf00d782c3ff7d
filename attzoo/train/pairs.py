"""Checks that images fit their masks and each other, from what their files declare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..data import FileInfo, Geometry, check_same_grid, check_same_map, describe_mask, transposes
from ..plotting import size_text
from .files import Pair
from .preparation import Preparation

RESIZE: Final = ": resize the mask with nearest-neighbour interpolation, or use the image that it was drawn on"


def describe_pairs(pairs: Sequence[Pair], preparation: Preparation) -> tuple[list[FileInfo], list[Geometry | None]]:
    """Check that images and masks fit, from the headers of their files.

    Returns:
        What the file of each image declares; and the geometry of each image, None if its file has none.

    Raises:
        ValueError: images differ in their number of channels or axes, or a mask has another size, orientation, voxel
            grid or other map coordinates than its image. The message has the paths.
    """
    image_infos: list[FileInfo] = []
    geometries: list[Geometry | None] = []
    first_path = pairs[0][0]
    for image, mask in pairs:
        image_info, mask_info = preparation.describe(image), describe_mask(mask)
        image_infos.append(image_info)
        shape, expected = image_info.image_shape, image_infos[0].image_shape
        if len(shape) != len(expected):
            got = f"{first_path} with {len(expected) - 1} and {image} with {len(shape) - 1}"
            fix = "put pictures and volumes into different folders"
            raise ValueError(f"expected images with the same number of spatial axes, got {got}: {fix}")
        if shape[0] != expected[0]:
            got = f"{first_path} with {expected[0]} and {image} with {shape[0]}: save all as grey or as RGB"
            raise ValueError(f"expected images with the same number of channels, got {got}")
        if mask_info.shape[1:] != shape[1:]:
            hint = _orientation_hint(image_info, mask_info) or _axes_hint(image, shape, mask_info.shape) or RESIZE
            got = f"{size_text(mask_info.shape[1:])}{hint}"
            raise ValueError(f"expected {mask} to have its image's size, {size_text(shape[1:])}, got {got}")
        _check_orientation(image, image_info, mask, mask_info)
        check_same_map(image, image_info, mask, mask_info)
        geometries.append(check_same_grid(image, mask))
    return image_infos, geometries


def check_scales(preparation: Preparation, images: Sequence[tuple[Path, np.dtype[Any]]]) -> None:
    """Raise ValueError, with two paths, if the preparation gives images of two dtypes different scales.

    `images` are paths with the dtypes of their pixels. With zscore all dtypes have one scale.
    """
    first_path, first_dtype = images[0]
    for image, dtype in images:
        if preparation.scale(dtype) != preparation.scale(first_dtype):
            got = f"{first_path} of {first_dtype} and {image} of {dtype}"
            fix = "convert all to one dtype, or set --normalise zscore"
            expected = f"dtypes of one scale for --normalise {preparation.normalise}"
            raise ValueError(f"expected images with {expected}, got {got}: {fix}")


def _axes_hint(image: Path, shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> str:
    """Return a hint if an array was probably saved with other axes than those that it is read with, else ''.

    Args:
        image: the path of the image.
        shape: (C, *S) of the image.
        mask_shape: (1, *S) of the mask, of another size.
    """
    if len(mask_shape) == 4 and tuple(shape[1:]) in (mask_shape[1:3], mask_shape[2:]) and mask_shape.count(1) == 1:
        return ": if each channel of the mask is a class, save the argmax over channels, an array (H, W)"
    if len(shape) == 4 and shape[0] == 1 and min(shape[1], shape[-1]) <= 4:
        fix = "save a picture (H, W, C) as PNG or TIFF"
        return f": {image} holds three axes, which are read as a volume (D, H, W); {fix}"
    stored_shape = (*shape[1:], shape[0])
    if len(shape) == 4 and stored_shape[1:] == mask_shape[1:]:
        return f": {image} holds {size_text(stored_shape)}; save channels as the last axis, (D, H, W, C)"
    if [side for side in shape[1:] if side > 1] == [side for side in mask_shape[1:] if side > 1]:
        return ": save both arrays with the same axes, (H, W) or (D, H, W)"
    return ""


def _orientation_hint(image: FileInfo, mask: FileInfo) -> str:
    """Return a hint with the orientations of an image and a mask of another size, '' if both are upright."""
    if image.orientation == mask.orientation == 1:
        return ""
    got = f"orientation {image.orientation} in the image and {mask.orientation} in the mask"
    return f", both after rotation by the EXIF {got}: save both upright"


def _check_orientation(image: Path, image_info: FileInfo, mask: Path, mask_info: FileInfo) -> None:
    """Raise ValueError if an image and its mask declare different EXIF orientations, one of which may be wrong.

    If one orientation swaps the axes and the other does not, equal sizes of an upright image that is not square show
    that both are right.

    Args:
        image: the path of the image.
        image_info: the metadata of its file.
        mask: the path of the mask.
        mask_info: the metadata of its file.
    """
    image_orientation, mask_orientation = image_info.orientation, mask_info.orientation
    both_are_right = (
        transposes(image_orientation) != transposes(mask_orientation) and len(set(image_info.shape[1:])) > 1
    )
    if image_orientation != mask_orientation and not both_are_right:
        got = f"EXIF orientation {image_orientation} in {image} and {mask_orientation} in {mask}"
        got += ", so one of them may be rotated"
        fix = "save both upright, without an orientation"
        raise ValueError(f"expected an image and mask of one orientation, got {got}: {fix}")
