"""Images whose channels are in files of their own: NAME_0000, NAME_0001 and so on, as in nnU-Net."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .grids import TOLERANCE, corner_distance
from .reading import describe_image, read_image
from .source import FileInfo, ending
from .volumes import read_geometry

NUMBER: Final = re.compile(r"_\d{4}$")
FIRST: Final = "_0000"


def channel_files(path: Path) -> list[Path]:
    """Return the files of all channels of an image, in order, from the path of the first, NAME_0000."""
    stem, suffix = path.name[: len(path.name) - len(ending(path))], path.name[len(path.name) - len(ending(path)) :]
    files = [path]
    while (file := path.with_name(f"{stem.removesuffix(FIRST)}_{len(files):04}{suffix}")).exists():
        files.append(file)
    return files


def first_files(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Return the first file, NAME_0000, of each image, by the name of the image, NAME.

    Args:
        paths: all files of all images, by their names without endings.

    Raises:
        ValueError: the files of an image are not numbered 0000, 0001 and so on without a gap, or have different
            endings.
    """
    first = {name.removesuffix(FIRST): path for name, path in paths.items() if name.endswith(FIRST)}
    files = {file for path in first.values() for file in channel_files(path)}
    if extra := [path for path in paths.values() if path not in files]:
        fix = "rename it, or leave out --channel-files if each image is one file"
        expected = "channels numbered from 0 as in NAME_0000, NAME_0001, ... with one ending"
        raise ValueError(f"expected {expected}, got {extra[0]}: {fix}")
    return first


def describe_channels(path: Path) -> FileInfo:
    """Return the metadata of an image in several files, from the path of the first: as of one file of all channels.

    Its dtype is the one that holds the numbers of all files. `load` is that of the first file.

    Raises:
        ValueError: the files have different spatial sizes or grids, or as `describe_image`.
    """
    files = channel_files(path)
    infos = [describe_image(file) for file in files]
    for file, info in zip(files, infos, strict=True):
        if info.image_shape[1:] != infos[0].image_shape[1:]:
            got = f"{infos[0].image_shape[1:]} in {path} and {info.image_shape[1:]} in {file}"
            raise ValueError(f"expected channels of one size, got {got}: resample them to one grid")
        _check_grid(path, file)
    channels = sum(info.image_shape[0] for info in infos)
    dtype = np.result_type(*(info.image_dtype for info in infos))
    return replace(infos[0], shape=(channels, *infos[0].shape[1:]), dtype=dtype, palette=None)


def _check_grid(first: Path, file: Path) -> None:
    """Raise ValueError if the NIfTI headers of two channels describe different grids of voxels."""
    grid, other_grid = read_geometry(first), read_geometry(file)
    if grid and other_grid:
        distance = corner_distance(grid.affine, other_grid.affine, grid.size)
        if distance > TOLERANCE * min(grid.spacing):
            got = f"{grid} in {first} and {other_grid} in {file}, with corners up to {distance:.4g} mm apart"
            raise ValueError(f"expected channels on one grid of voxels, got {got}: resample them to one grid")


def read_channels(path: Path, *, unit: bool = False) -> NDArray[Any]:
    """Return an image (C, *S) in several files, from the path of the first. `unit` and errors: as `read_image`."""
    return np.concatenate([read_image(file, unit=unit) for file in channel_files(path)])
