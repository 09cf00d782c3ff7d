"""Comparison of the voxel grids of an image and its mask: by NIfTI headers, and by the tags of GeoTIFF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .source import FileInfo
from .volumes import Geometry, read_geometry

TOLERANCE: Final = 0.1   # largest distance between corresponding corners of two equal grids, in voxels


def check_same_grid(image: Path, mask: Path) -> Geometry | None:
    """Check that the NIfTI headers of an image and its mask describe the same grid of voxels; return the image's.

    The affines and the units of length are compared. Some programs prefer the qform to the sform, so the qforms are
    compared too if both files have a qform and a sform. Two files of other formats are not compared.

    Args:
        image: the file of the image.
        mask: the file of the mask.

    Returns:
        The geometry of the image; None if the image is not a NIfTI file.

    Raises:
        ValueError: if the grids or units differ, or if only one file is NIfTI and two axes have equal sizes. The
            message names both files.
    """
    image_grid, mask_grid = read_geometry(image), read_geometry(mask)
    if image_grid is None or mask_grid is None:
        if grid := image_grid or mask_grid:
            _check_order(image, mask, [side for side in grid.size if side > 1])
        return image_grid
    if image_grid.unit != mask_grid.unit and None not in (image_grid.unit, mask_grid.unit):
        got = f"{image_grid.unit} in the image and {mask_grid.unit} in the mask: save both with the correct unit"
        raise ValueError(f"expected {mask} in the unit of its image {image}, got {got}")
    expected = f"expected {mask} on the grid of its image {image}, got"
    fix = (
        "resample the mask to the image; or, if its array is already in the order of the image's array, save it with "
        "the image's header"
    )
    tolerance = TOLERANCE * min(image_grid.spacing)
    if (distance := corner_distance(image_grid.affine, mask_grid.affine, image_grid.size)) > tolerance:
        got = f"{image_grid} in the image and {mask_grid} in the mask, with corners up to {distance:.4g} mm apart"
        raise ValueError(f"{expected} {got}: {fix}")
    if image_grid.qform is None or mask_grid.qform is None:
        return image_grid
    if (distance := corner_distance(image_grid.qform, mask_grid.qform, image_grid.size)) > tolerance:
        raise ValueError(f"{expected} equal sforms but qforms with corners up to {distance:.4g} mm apart: {fix}")
    return image_grid


def _check_order(image: Path, mask: Path, sizes: Sequence[int]) -> None:
    """Raise ValueError if two axes of an image and mask have equal sizes, where only one of the files is NIfTI.

    NIfTI has x as the first axis; pictures and arrays of SimpleITK have x as the last. Only different sizes show which
    axes correspond.

    Args:
        image: the file of the image.
        mask: the file of the mask.
        sizes: the numbers of voxels along the axes of the NIfTI file that are longer than 1.
    """
    if len({*sizes}) < len(sizes):
        size = " x ".join(map(str, sizes))
        got = f"only one NIfTI file, and axes of equal size, {size}, whose order cannot be compared without headers"
        fix = "save both as NIfTI, the mask with the header of the image"
        raise ValueError(f"expected the mask {mask} and its image {image} both with a NIfTI header, got {got}: {fix}")


def check_same_map(image: Path, image_info: FileInfo, mask: Path, mask_info: FileInfo) -> None:
    """Check that the GeoTIFF tags of an image and its mask give their pixels the same map coordinates; return nothing.

    Files without these tags are not compared.

    Args:
        image: the file of the image.
        image_info: the metadata of the image's file.
        mask: the file of the mask.
        mask_info: the metadata of the mask's file.

    Raises:
        ValueError: if the coordinates differ. The message names both files.
    """
    image_affine, mask_affine = image_info.on_map, mask_info.on_map
    if image_affine is None or mask_affine is None:
        return
    distance = corner_distance(image_affine, mask_affine, (*image_info.shape[:0:-1], 1))
    if distance > TOLERANCE * _pixel_sides(image_affine).min():
        got = f"{_pixels_on_map(image_affine)} in the image and {_pixels_on_map(mask_affine)} in the mask"
        fix = "resample the mask to the image, or crop both to the same region"
        raise ValueError(f"expected {mask} at the map coordinates of its image {image}, got {got}: {fix}")


def _pixel_sides(affine: NDArray[Any]) -> NDArray[Any]:
    """Return the width and height of a pixel in map units, (2,), from a map affine (4, 4)."""
    return np.asarray(np.linalg.norm(affine[:3, :2], axis=0))


def _pixels_on_map(affine: NDArray[Any]) -> str:
    """Return the size of a pixel and the map coordinates of the first pixel's corner as text for a message."""
    size = " x ".join(f"{side:.4g}" for side in _pixel_sides(affine))
    return f"pixels of {size} starting at x {affine[0, 3]:.10g}, y {affine[1, 3]:.10g}"


def corner_distance(first: NDArray[Any], second: NDArray[Any], size: Sequence[int]) -> float:
    """Return the largest distance between corresponding corners of one grid under two affines, in their unit.

    Args:
        first: an affine, (4, 4), from indices to coordinates.
        second: the affine that it is compared with, (4, 4).
        size: number of voxels along each of the three axes.
    """
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(size) - 1)
    difference = first - second
    return float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())
