"""What a file declares about the samples that it stores, whatever its format."""

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
DICOM: Final = "DICOM: convert the series to .nii.gz, with dcm2niix for instance"
UNREAD: Final = {   # endings of images and volumes that nothing here reads, and what to do with such a file
    **dict.fromkeys((".dcm", ".dicom", ".ima"), DICOM),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr", ".img", ".mnc"), TO_NIFTI),
    **dict.fromkeys((".tga", ".pfm", ".pam", ".psd", ".lsm", ".stk", ".jxr", ".jls", ".fits", ".svs", ".ndpi"), TO_PNG),
    **dict.fromkeys((".heic", ".heif", ".avif", ".jxl", ".svg", ".exr", ".dng", ".czi", ".nd2", ".lif"), TO_PNG),
    **dict.fromkeys((".npz", ".mat", ".h5", ".hdf5"), "save its arrays as .npy, one a file"),
}


@dataclass(frozen=True)
class Source:
    """The samples of a file, and what its head says of them.

    shape: (C, *S) of the samples, upright. dtype: of the samples. load: reads them, (C, *S).
    largest: the largest integer that the declared bits hold, None for floats.
    opacity: the channel that is opacity, None for none.
    orientation: by which the samples are turned upright, from 1 to 8 as EXIF and TIFF have it.
    on_map: (4, 4), from columns and rows of pixels to places on a map; None where the file doesn't say.
    no_data: the value of pixels that nothing was measured in; None where the file doesn't declare one.
    palette: (K, 3), the colours that samples are indices into, of 8 or 16 bits; None for no palette.
    has_stable_indices: whether programs that save the format keep the order of the palette.
    is_white_least: whether the least grey value is white, as TIFF's MinIsWhite has it.
    not_an_image, not_a_mask: why the samples can't be read as one, None where they can.
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
        """(C, *S) of the image: a palette gives three channels."""
        return self.shape if self.palette is None else (3, *self.shape[1:])

    @property
    def image_dtype(self) -> np.dtype[Any]:
        """The dtype of the image: a palette's, where there is one."""
        return self.dtype if self.palette is None else self.palette.dtype

    def greys(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Values of one channel as the greys that they are shown as: of fewer than 8 bits, the largest is 255."""
        if self.largest is None:
            return values
        greys = self.largest - values if self.is_white_least else values
        return greys * (255 // self.largest) if self.largest in (1, 3, 15) else greys

    def samples(self) -> NDArray[Any]:
        """The stored samples (C, *S), C-contiguous, in the machine's byte order.

        Raises ValueError where they are not of the shape that the head declares.
        """
        array = self.load()
        if array.shape != self.shape:
            raise ValueError(f"expected samples of shape {self.shape}, as the head says, got {array.shape}")
        return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def largest_integer(dtype: np.dtype[Any], bits: int | None = None) -> int | None:
    """The largest integer of so many bits, by default those of the dtype; None for floats.

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
    """(H, W) or (H, W, C) -> (C, H, W)."""
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def ending(path: Path) -> str:
    """The ending of a file's name, lower case; ".nii.gz" is one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def has_known_ending(path: Path) -> bool:
    """Whether a file's name ends like an image's, a mask's or a volume's."""
    return ending(path) in (*VOLUMES, *PICTURES)


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so, with 132 bytes or more, is DICOM."""
    return head[128:132] == b"DICM"


def unread(path: Path) -> str | None:
    """What to do with an image or volume in a format that is not read, None for a file of another kind."""
    if has_known_ending(path):
        return None
    if fix := UNREAD.get(Path(path.name.lower().removesuffix(".gz")).suffix):
        return fix
    with suppress(OSError), open_regular(path) as file:
        return DICOM if is_dicom(file.read(132)) else None
    return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every error name the file; readers of broken files raise what they like, even SyntaxError."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as err:
        if isinstance(err, OSError) and err.filename is not None:   # no such file, say
            raise
        if not isinstance(err, (ValueError, OSError, MemoryError)):   # of a reader that stumbled
            why = "the file may be damaged, or not be what its name says"
            got, fix = f"{type(err).__name__}: {err}", "copy it again, or save it anew"
            raise ValueError(f"cannot read {path}: {why}: {got}; {fix}") from err
        raise ValueError(f"cannot read {path}: {err}") from err
