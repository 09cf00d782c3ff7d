"""Volumes: arrays of .npy, and NIfTI with the geometry of its header."""

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
from ..files import whole, write
from .extra import package
from .source import Source, ending, largest_integer, naming

UNITS: Final = {1: "metres", 2: "millimetres", 3: "micrometres"}   # by the lowest three bits of NIfTI's xyzt_units
CHUNK: Final = 2**20   # bytes that are decompressed at a time


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a volume lie.

    affine: (4, 4), from indices to millimetres. spacing: between voxels, in millimetres, one for each axis.
    size: voxels along each axis. qform: the affine by quaternion, where the file has it beside the one that is taken.
    unit: of length, None where the file names none.
    """

    affine: Array
    spacing: tuple[float, ...]
    size: tuple[int, ...]
    qform: Array | None = None
    unit: str | None = None

    @property
    def axes(self) -> str:
        """Where each axis leads, as "RAS"."""
        return "".join(str(axis) for axis in package("nibabel").aff2axcodes(self.affine))

    @property
    def sides(self) -> str:
        """The spacing in words, as "1 x 1 x 2.5"."""
        return " x ".join(f"{side:.4g}" for side in self.spacing)

    def __str__(self) -> str:
        return f"{self.axes} axes, spacing {self.sides}"


def describe(path: Path) -> Source:
    """An array (H, W), (D, H, W) or (D, H, W, C)."""
    content = _content(path)
    shape, dtype = tuple(content.shape), content.dtype
    if ending(path) != ".npy":   # numbers that the header scales are floats
        scaled = package("nibabel.volumeutils").apply_read_scaling
        dtype = scaled(np.zeros(1, dtype), content.slope, content.inter).dtype
    return Source(
        shape=(1, *shape) if len(shape) < 4 else (shape[-1], *shape[:-1]),
        dtype=dtype,
        load=lambda: _channels_first(_compressed(path) if ending(path) == ".nii.gz" else np.array(_content(path))),
        largest=largest_integer(dtype),
    )


def _content(path: Path) -> Any:
    """The array in a volume's file, checked by its head; numbers are not read yet."""
    if ending(path) == ".npy":
        array = np.lib.format.open_memmap(path, mode="r")   # which takes neither an archive nor Python objects
        if (more := path.stat().st_size - array.offset - array.nbytes) > 0:
            raise ValueError(f"expected one array, got {more} bytes behind it; save each in a file of its own")
    else:
        array = _nifti(path)
    if array.dtype.kind not in "biuf":
        fix = "save channels as the last axis of real numbers, (D, H, W, C)"
        raise ValueError(f"expected real numbers, got {array.dtype}; {fix}")
    if not 2 <= len(array.shape) <= 4 or 0 in array.shape:
        raise ValueError(f"expected (H, W), (D, H, W) or (D, H, W, C), got {tuple(array.shape)}")
    return array


def _nifti(path: Path) -> Any:
    """The array in a NIfTI file, not read yet, once its name and its head are seen to be right."""
    nibabel, is_zipped = package("nibabel"), ending(path) == ".nii.gz"
    with path.open("rb") as file:
        head = file.read(2)
    if head and (head == b"\x1f\x8b") != is_zipped:
        wanted, got = ("a gzip file", "another") if is_zipped else ("no compression", "a gzip file")
        name = path.name[:-3] if is_zipped else f"{path.name}.gz"
        raise ValueError(f"expected {wanted}, got {got}: name it {name}")
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Pair):   # CIFTI, say
        raise ValueError(f"expected voxels of NIfTI, got {type(image).__name__}; save them as a NIfTI volume")
    first, offset = image.header.single_vox_offset, int(image.dataobj.offset)
    if offset < first:
        raise ValueError(f"expected voxels from byte {first} on, got the header's vox_offset {offset}: save it anew")
    return image.dataobj


def _compressed(path: Path) -> NDArray[Any]:
    """The array in a .nii.gz, once the checksum at the end of the file is seen to be right.

    nibabel stops at the last voxel, before the checksum, and would give wrong numbers of a damaged file.
    """
    kind = type(package("nibabel").load(path))
    try:
        with gzip.open(path) as file:
            array = np.array(kind.from_stream(file).dataobj)
            while file.read(CHUNK):   # compares the checksum at the end
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise ValueError(f"expected a whole gzip file, got a damaged one: {err}; copy it again") from err
    return array


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    return array[None] if array.ndim < 4 else np.moveaxis(array, -1, 0)


# ---- geometry --------------------------------------------------------------------------------------


def read_geometry(path: str | Path) -> Geometry | None:
    """The geometry in a NIfTI file's header, None for a file of another kind."""
    path = Path(path)
    if ending(path) not in (".nii", ".nii.gz"):
        return None
    with naming(path):
        nibabel = package("nibabel")
        image = nibabel.load(path)
        affine = np.asarray(image.affine, np.float64)
        if not np.isfinite(affine).all():
            raise ValueError("expected an affine of finite numbers in the header, got others")
        spacing = tuple(map(float, nibabel.affines.voxel_sizes(affine)))
        if min(spacing) <= 0:
            got, fix = " x ".join(f"{side:.4g}" for side in spacing), "mend its sform or qform, or set their codes to 0"
            raise ValueError(f"expected a positive spacing of voxels in the header, got {got}: {fix}")
        size = (*image.shape, 1, 1)[:3]
        return Geometry(affine, spacing, size, _qform(image.header), UNITS.get(int(image.header["xyzt_units"]) % 8))


def _qform(header: Any) -> Array | None:
    """The affine by quaternion, None where the header has none, or nothing else."""
    if not header["qform_code"] or not header["sform_code"]:
        return None
    return np.asarray(header.get_qform(), np.float64)


def write_mask(path: Path, mask: NDArray[Any], source: Path) -> None:
    """Write class indices (*S) as a volume, whole or not at all.

    A NIfTI file takes over the header of `source`: qform, sform and their codes, units, spacing and extensions.
    """
    if ending(path) == ".npy":
        file = BytesIO()
        np.save(file, mask, allow_pickle=False)
        write(path, file.getvalue())
        return
    nibabel = package("nibabel")
    image = nibabel.load(source)
    header = image.header.copy()
    header.set_data_dtype(mask.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0   # the window in which the image's greys are shown
    with whole(path) as temporary:
        nibabel.save(type(image)(mask, None, header), temporary)
