"""Metadata of image files of all formats, endings of file names, and errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..files import open_regular

VOLUMES: Final = (".npy", ".nii", ".nii.gz")
PICTURES: Final = (
    ".png", ".apng", ".tif", ".tiff", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".gif", ".webp", ".pbm",
    ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".jpx", ".j2c", ".jpf",
)   # fmt: skip
TO_NIFTI: Final = "convert it to .nii.gz"
TO_PNG: Final = "convert it to PNG or TIFF"
SCALED: Final = (1, 3, 15)   # largest integers of greys of 1, 2 and 4 bits, which programs scale to 0 to 255
DICOM: Final = "DICOM: convert the series to .nii.gz, for example with dcm2niix"
UNREADABLE_ENDINGS: Final = {   # endings of unsupported images and volumes, and how to make them readable
    **dict.fromkeys((".dcm", ".dicom", ".ima"), DICOM),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr", ".img", ".mnc"), TO_NIFTI),
    **dict.fromkeys((".tga", ".pfm", ".pam", ".psd", ".lsm", ".stk", ".jxr", ".jls", ".fits", ".svs", ".ndpi"), TO_PNG),
    **dict.fromkeys((".heic", ".heif", ".avif", ".jxl", ".svg", ".exr", ".dng", ".czi", ".nd2", ".lif"), TO_PNG),
    **dict.fromkeys((".npz", ".mat", ".h5", ".hdf5"), "save its arrays as .npy, one array per file"),
}


@dataclass(frozen=True)
class FileInfo:
    """The metadata of an image, mask or volume file, and a function that reads its samples (the stored numbers).

    Attributes:
        shape: (C, *S) of the samples after rotation by `orientation`.
        dtype: the dtype of the samples.
        load: a function that reads the samples, (C, *S).
        largest: the largest integer of the declared bits, such as 4095 for 12 bits; None for floats.
        opacity: the index of the channel with the opacity; None if there is none.
        orientation: the declared orientation, from 1 to 8 as in EXIF and TIFF.
        on_map: (4, 4), the affine from columns and rows to map coordinates; None if the file declares none.
        no_data: the value of pixels that were not measured; None if the file declares none.
        palette: (K, 3), the colours of palette indices, in 8 or 16 bits; None for no palette.
        has_stable_indices: whether programs that save the format preserve the order of the palette.
        is_white_least: whether the smallest grey value is white, as in TIFF's MinIsWhite.
        not_an_image: the error message if the samples cannot be read as an image; None if they can.
        not_a_mask: the error message if the samples cannot be read as a mask; None if they can.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], NDArray[Any]]
    largest: int | None = None
    opacity: int | None = None
    orientation: int = 1
    on_map: NDArray[Any] | None = None
    no_data: float | None = None
    palette: NDArray[Any] | None = None
    has_stable_indices: bool = True
    is_white_least: bool = False
    not_an_image: str | None = None
    not_a_mask: str | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (C, *S) of the image: 3 channels if there is a palette."""
        return self.shape if self.palette is None else (3, *self.shape[1:])

    @property
    def image_dtype(self) -> np.dtype[Any]:
        """The dtype of the image: that of the palette if there is one."""
        return self.dtype if self.palette is None else self.palette.dtype

    @property
    def has_few_bits(self) -> bool:
        """Whether the image has greys of 2 or 4 bits, whose integers change if a program saves it with 8 bits."""
        return self.palette is None and self.dtype.kind != "b" and self.largest in SCALED

    def greys(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the grey values in which programs display `values`; those of 1, 2 or 4 bits are scaled to 0 to 255."""
        if self.largest is None:
            return values
        greys = self.largest - values if self.is_white_least else values
        return greys * (255 // self.largest) if self.largest in SCALED else greys

    def samples(self) -> NDArray[Any]:
        """Read the file and return its samples (C, *S), C-contiguous and in native byte order.

        Raises:
            ValueError: if the shape of the samples is not the shape in the file's header, or as `load`.
        """
        array = self.load()
        if array.shape != self.shape:
            got = f"{array.shape}: the file may be damaged; save or copy the file again"
            raise ValueError(f"expected samples of the shape in the header, {self.shape}, got {got}")
        return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def largest_integer(dtype: np.dtype[Any], bits: int | None = None) -> int | None:
    """Return the largest integer of a dtype, or of `bits` bits if the file declares fewer; None for floats.

    >>> largest_integer(np.dtype("uint16"), 12), largest_integer(np.dtype("int16")), largest_integer(np.dtype("bool"))
    (4095, 32767, 1)
    """
    if dtype.kind == "b":
        return 1
    if dtype.kind not in "iu":
        return None
    bits = bits or 8 * dtype.itemsize
    return int(2 ** (bits - (dtype.kind == "i")) - 1)


def channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """Return a picture (H, W) or (H, W, C) as (C, H, W)."""
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def ending(path: Path) -> str:
    """Return the ending of a file's name in lower case; ".nii.gz" is one ending."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def has_known_ending(path: Path) -> bool:
    """Whether the ending of a file's name is that of a supported image, mask or volume."""
    return ending(path) in (*VOLUMES, *PICTURES)


def is_dicom(first_bytes: bytes) -> bool:
    """Whether a file is DICOM, from its first 132 bytes or more."""
    return first_bytes[128:132] == b"DICM"


def unsupported_format(path: Path) -> str | None:
    """Return how to make a file of an unsupported image format readable, as text; None for any other file.

    Some formats are recognized by the ending of the name, DICOM also by the content.
    """
    if has_known_ending(path):
        return None
    if fix := UNREADABLE_ENDINGS.get(Path(path.name.lower().removesuffix(".gz")).suffix):
        return fix
    with suppress(OSError), open_regular(path) as file:
        return DICOM if is_dicom(file.read(132)) else None
    return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise errors of reading a file in the `with` block as ValueError whose message names the file.

    Libraries that read files raise many types of errors for damaged files, such as SyntaxError, whose messages do not
    say what to do, so the message of this error does. ModuleNotFoundError, and OSError that already names a file, are
    not changed.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as err:
        if isinstance(err, OSError) and err.filename is not None:   # the message already has a path
            raise
        if not (isinstance(err, MemoryError) or _is_of_attzoo(err)):
            cause_text = "the file may be damaged, or have the wrong ending"
            got = f"{type(err).__name__}: {' '.join(str(err).split())}"
            fix = "copy the file again, or save it again"
            raise ValueError(f"cannot read {path}: {cause_text}: {got}; {fix}") from err
        size_fix = "if the size in the file's header is wrong, copy the file again"
        memory_text = f"too little memory for the samples; {size_fix}"
        raise ValueError(f"cannot read {path}: {str(err) or memory_text}") from err


def _is_of_attzoo(err: Exception) -> bool:
    """Whether code of attzoo raised an error, whose message then says what to do, and not a library that it calls."""
    traceback = err.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module_name = "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__"))
    return isinstance(err, (ValueError, OSError)) and module_name.startswith("attzoo.")


@contextmanager
def adding_path(path: Path) -> Iterator[None]:
    """Add the path to the message of a ValueError that the `with` block raises, unless the message already has it."""
    try:
        yield
    except ValueError as err:
        if str(path) in str(err):
            raise
        raise ValueError(f"{path}: {err}") from err
