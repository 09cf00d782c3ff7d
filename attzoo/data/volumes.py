"""Volumes in .npy and NIfTI files, and the geometry in NIfTI headers."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..contract import Array
from ..files import atomic_write, write
from .extra import package
from .source import FileInfo, ending, largest_integer, naming

UNITS: Final = {1: "metres", 2: "millimetres", 3: "micrometres"}   # by the lowest three bits of NIfTI's xyzt_units
CHUNK: Final = 2**20   # bytes, decompressed in one step


@dataclass(frozen=True)
class Geometry:
    """The position of a volume's voxels in space.

    Attributes:
        affine: (4, 4), from voxel indices to millimetres: the header's sform, or its qform if it has no sform.
        spacing: the distance between voxels along each axis, in millimetres.
        size: the number of voxels along each axis.
        qform: the affine of the header's quaternion, (4, 4), if the header has both a qform and a sform; else None.
        unit: the unit of length that the header declares; None if it declares none.
    """

    affine: Array
    spacing: tuple[float, ...]
    size: tuple[int, ...]
    qform: Array | None = None
    unit: str | None = None

    @property
    def axes(self) -> str:
        """The anatomical directions of the axes, such as "RAS" for right, anterior, superior."""
        return "".join(str(axis) for axis in package("nibabel").aff2axcodes(self.affine))

    @property
    def sides(self) -> str:
        """The spacing in millimetres as text, such as "1 x 1 x 2.5"."""
        return " x ".join(f"{side:.4g}" for side in self.spacing)

    def __str__(self) -> str:
        """Return the directions and the spacing of the axes as text."""
        return f"{self.axes} axes with a spacing of {self.sides} mm"


def describe(path: Path) -> FileInfo:
    """Return the metadata of a volume (H, W), (D, H, W) or (D, H, W, C) in a .npy or NIfTI file.

    Raises:
        ValueError: as `_open_array`.
    """
    array = _open_array(path)
    shape, dtype = tuple(array.shape), array.dtype
    if ending(path) != ".npy":   # samples with a scale in the header become floats
        apply_scaling = package("nibabel.volumeutils").apply_read_scaling
        dtype = apply_scaling(np.zeros(1, dtype), array.slope, array.inter).dtype
    return FileInfo(
        shape=(1, *shape) if len(shape) < 4 else (shape[-1], *shape[:-1]),
        dtype=dtype,
        load=lambda: _channels_first(_read_gzip(path) if ending(path) == ".nii.gz" else np.array(_open_array(path))),
        largest=largest_integer(dtype),
    )


def _open_array(path: Path) -> Any:
    """Open a volume's file and return its array, whose samples are not read yet.

    Raises:
        ValueError: if the file is no .npy file, is damaged, or holds Python objects; if the dtype or shape is not that
            of a volume, if more data follow the array, or as `_open_nifti`.
    """
    if ending(path) == ".npy":
        try:
            array = np.lib.format.open_memmap(path, mode="r")   # raises for archives and Python objects
        except ValueError as err:
            got = f"another or a damaged file: {err}; save the array again by numpy.save"
            raise ValueError(f"expected a whole .npy file of real numbers, got {got}") from err
        if (trailing_bytes := path.stat().st_size - array.offset - array.nbytes) > 0:
            fix = "save each array in its own file"
            raise ValueError(f"expected one array, got {trailing_bytes} more bytes after it; {fix}")
    else:
        array = _open_nifti(path)
    if array.dtype.kind not in "biuf":
        fix = "save integers or floats, and channels as the last axis of (D, H, W, C)"
        raise ValueError(f"expected real numbers, got dtype {array.dtype}; {fix}")
    if not 2 <= len(array.shape) <= 4 or 0 in array.shape:
        got = f"{tuple(array.shape)}: save one image or volume per file, with at least one pixel"
        raise ValueError(f"expected an array (H, W), (D, H, W) or (D, H, W, C), got {got}")
    return array


def _open_nifti(path: Path) -> Any:
    """Open a NIfTI file and return its array, whose samples are not read yet.

    Raises:
        ValueError: if the compression does not match the ending of the name, if the file has no NIfTI volume, or if the
            header gives a wrong position of the samples.
    """
    nibabel, is_gzip = package("nibabel"), ending(path) == ".nii.gz"
    with path.open("rb") as file:
        first_bytes = file.read(2)
    if first_bytes and (first_bytes == b"\x1f\x8b") != is_gzip:
        expected, got = ("a gzip file", "another format") if is_gzip else ("no compression", "a gzip file")
        name = path.name[:-3] if is_gzip else f"{path.name}.gz"
        raise ValueError(f"expected {expected} by the ending {ending(path)}, got {got}: rename the file to {name}")
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Pair):   # for example CIFTI
        got = f"nibabel's {type(image).__name__}; save the data as a NIfTI volume"
        raise ValueError(f"expected a NIfTI volume, got {got}")
    smallest_offset, offset = image.header.single_vox_offset, int(image.dataobj.offset)
    if offset < smallest_offset:
        raise ValueError(f"expected vox_offset >= {smallest_offset} in the header, got {offset}: save the file again")
    return image.dataobj


def _read_gzip(path: Path) -> NDArray[Any]:
    """Return the array in a .nii.gz file, after the checksum at the end of the file was checked.

    nibabel stops at the last voxel, before the checksum, and would return wrong values from a damaged file.

    Raises:
        ValueError: if the file is damaged.
    """
    image_class = type(package("nibabel").load(path))
    try:
        with gzip.open(path) as file:
            array = np.array(image_class.from_stream(file).dataobj)
            while file.read(CHUNK):   # compares the checksum
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise ValueError(f"expected a complete gzip file, got a damaged file: {err}; copy the file again") from err
    return array


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """Return a volume (*S) or (*S, C) as (C, *S)."""
    return array[None] if array.ndim < 4 else np.moveaxis(array, -1, 0)


# ---- geometry --------------------------------------------------------------------------------------


def read_geometry(path: str | Path) -> Geometry | None:
    """Return the geometry in a NIfTI file's header, or None for a file whose ending is not .nii or .nii.gz.

    Raises:
        ValueError: if the file cannot be read, if the affine is not finite, or if a spacing is 0. The message names the
            file.
    """
    path = Path(path)
    if ending(path) not in (".nii", ".nii.gz"):
        return None
    with naming(path):
        nibabel = package("nibabel")
        image = nibabel.load(path)
        affine = np.asarray(image.affine, np.float64)
        if not np.isfinite(affine).all():
            fix = "correct the sform or qform, or set their codes to 0"
            raise ValueError(f"expected finite numbers in the header's affine, got NaN or infinity: {fix}")
        spacing = tuple(map(float, nibabel.affines.voxel_sizes(affine)))
        if min(spacing) <= 0:
            got = " x ".join(f"{side:.4g}" for side in spacing)
            fix = "correct the sform or qform, or set their codes to 0"
            raise ValueError(f"expected a positive spacing of voxels in the header, got {got} mm: {fix}")
        size = (*image.shape, 1, 1)[:3]
        return Geometry(affine, spacing, size, _qform(image.header), UNITS.get(int(image.header["xyzt_units"]) % 8))


def _qform(header: Any) -> Array | None:
    """Return the affine of a NIfTI header's quaternion, (4, 4); None unless the header has a qform and a sform."""
    if not header["qform_code"] or not header["sform_code"]:
        return None
    return np.asarray(header.get_qform(), np.float64)


def write_mask(path: Path, mask: NDArray[Any], source: Path) -> None:
    """Write class indices to a .npy or NIfTI file, atomically; return nothing.

    A NIfTI file gets the header of `source`: qform, sform and their codes, units, spacing and extensions.

    Args:
        path: the file to write, with the ending of `source`.
        mask: (*S), the class indices.
        source: the file of the image, for its header.

    Raises:
        OSError: if the file cannot be written.
    """
    if ending(path) == ".npy":
        buffer = BytesIO()
        np.save(buffer, mask, allow_pickle=False)
        write(path, buffer.getvalue())
        return
    nibabel = package("nibabel")
    image = nibabel.load(source)
    header = image.header.copy()
    header.set_data_dtype(mask.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0   # the display window of the image, not of the mask
    header.set_intent("none")   # what the values of the image mean, such as t-values, not those of the mask
    with atomic_write(path) as temporary:
        nibabel.save(type(image)(mask, None, header), temporary)
