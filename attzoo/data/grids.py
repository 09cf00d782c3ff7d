"""Whether the pixels of an image and of its mask lie in the same places: by NIfTI headers, and by tags of GeoTIFF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .source import Source
from .volumes import Geometry, read_geometry

TOLERANCE: Final = 0.1   # of a voxel, by which two grids may be apart at a corner


def check_same_grid(image: Path, mask: Path) -> Geometry | None:
    """The geometry of a NIfTI image, None of another file.

    Raises ValueError, naming both files, where the headers of the image and its mask place voxels differently: by their
    affines, by both of their qforms where they have sforms too, which other programs prefer, or by their units; and
    where one of two with axes of equal sizes has no header.
    """
    one, two = read_geometry(image), read_geometry(mask)
    if one is None or two is None:
        if known := one or two:
            _check_order(image, mask, [side for side in known.size if side > 1])
        return one
    if one.unit != two.unit and None not in (one.unit, two.unit):
        fix = "save both with the unit that is right"
        raise ValueError(f"expected {mask} in the unit of its image {image}, got {one.unit} and {two.unit}: {fix}")
    expected = f"expected {mask} on the grid of its image {image}, got"
    fix = "resample the mask to the image, or if its voxels have the image's order, save it with the image's header"
    if (apart := corners_apart(one.affine, two.affine, one.size)) > TOLERANCE * min(one.spacing):
        raise ValueError(f"{expected} {one} and {two}, corners up to {apart:.4g} mm apart: {fix}")
    if one.qform is None or two.qform is None:
        return one
    if (apart := corners_apart(one.qform, two.qform, one.size)) > TOLERANCE * min(one.spacing):
        raise ValueError(f"{expected} the same by sform, but by qform corners up to {apart:.4g} mm apart: {fix}")
    return one


def _check_order(image: Path, mask: Path, sides: Sequence[int]) -> None:
    """Raise ValueError where only one of two files is NIfTI, and the sizes don't tell which of its axes is which.

    NIfTI counts along x first; arrays of SimpleITK and pictures, which have no header, along x last.
    """
    if len({*sides}) < len(sides):
        got = f"one with and one without, and axes of equal sizes, {' x '.join(map(str, sides))} in any order"
        fix = "save both as NIfTI, the mask with the header of the image"
        raise ValueError(f"expected {mask} with a header as its image {image}, or neither, got {got}: {fix}")


def check_same_map(image: Path, head: Source, mask: Path, labelled: Source) -> None:
    """Raise ValueError, naming both files, where tags of GeoTIFF place the pixels of image and mask differently."""
    one, two, size = head.on_map, labelled.on_map, (*head.shape[:0:-1], 1)
    if one is None or two is None:
        return
    if corners_apart(one, two, size) > TOLERANCE * np.linalg.norm(one[:3, :2], axis=0).min():
        got = " and ".join(f"pixels of {_side(each)} from {each[0, 3]:.10g}, {each[1, 3]:.10g}" for each in (one, two))
        fix = "resample the mask to the image, or cut both from the same place"
        raise ValueError(f"expected {mask} on the map where its image {image} is, got {got}: {fix}")


def _side(affine: NDArray[Any]) -> str:
    return " x ".join(f"{side:.4g}" for side in np.linalg.norm(affine[:3, :2], axis=0))


def corners_apart(one: NDArray[Any], two: NDArray[Any], size: Sequence[int]) -> float:
    """The largest distance between a corner of a grid of this size by one affine and by the other."""
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(size) - 1)
    difference = one - two
    return float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())
