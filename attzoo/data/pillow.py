"""Reading of files whose header Pillow can read: metadata, samples, orientation and palette."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .extra import package
from .orientation import upright, upright_size, valid_orientation
from .source import FileInfo, channels_first, largest_integer

ORIENTATION: Final = 0x0112   # EXIF's tag
# The number of channels of each of Pillow's modes.
MODES: Final = {"1": 1, "L": 1, "P": 1, "I;16": 1, "I;16B": 1, "I": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
EXIF_TEXT: Final = b"Raw profile type exif\0"   # keywords of a PNG's texts from which Pillow reads the orientation
XMP_TEXT: Final = b"XML:com.adobe.xmp\0"
PASSES: Final = (((0, 0, 1, 1),), (   # of a PNG, not interlaced and Adam7: first row, first column, row and column step
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
))   # fmt: skip
PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}   # number of channels by PNG's colour type


def by_pillow(
    path: Path,
    kind: str,
    dtype: np.dtype[Any] | None = None,
    *,
    bits: int | None = None,
    restore: Callable[[NDArray[Any]], NDArray[Any]] = lambda array: array,
    decode: Callable[[Path], NDArray[Any]] | None = None,
    channels: int | None = None,
    has_stable_indices: bool = True,
    not_a_mask: str | None = None,
) -> FileInfo:
    """Return the metadata of a picture whose header Pillow can read.

    Args:
        path: the file.
        kind: the name of the format in Pillow.
        dtype: the dtype of the samples; None for that of Pillow's mode.
        bits: the stored bits of a sample; None for all bits of the dtype.
        restore: a function from the array that Pillow returns to the stored samples.
        decode: a function that reads the samples (H, W, C) of a file; None for Pillow.
        channels: the number of channels; None for that of Pillow's mode.
        has_stable_indices: as in `FileInfo`.
        not_a_mask: as in `FileInfo`.

    Raises:
        ValueError: if the mode is not supported, or for the causes of `open_picture`.
    """
    with open_picture(path, kind) as picture:
        mode = picture.mode
        if mode not in MODES:
            raise ValueError(f"expected grey, RGB, CMYK or a palette, got {mode}: save the file as RGB")
        orientation = _orientation(picture, is_whole=kind == "PNG" and _has_late_metadata(path))
        palette = palette_of(picture) if mode == "P" else None
        size = upright_size((picture.height, picture.width), orientation)
    dtype, channels = dtype or np.dtype(bool if mode == "1" else np.uint8), channels or MODES[mode]

    def load() -> NDArray[Any]:
        """Return the samples (C, H, W), rotated as declared. Raise ValueError if the file is damaged."""
        if kind == "PNG":
            _check_png(path)
        with open_picture(path, kind) as picture:
            array = restore(np.asarray(picture)) if decode is None else decode(path)
            return upright(channels_first(array).astype(dtype, copy=False), orientation)

    return FileInfo(
        shape=(channels, *size),
        dtype=dtype,
        load=load,
        largest=largest_integer(dtype, bits),
        orientation=orientation,
        opacity=channels - 1 if mode in ("LA", "RGBA") else None,
        palette=palette,
        has_stable_indices=has_stable_indices,
        not_a_mask=not_a_mask,
    )


def open_picture(path: Path, kind: str) -> Any:
    """Open a file with Pillow and return Pillow's image, which the caller closes.

    Args:
        path: the file.
        kind: the name of the format in Pillow.

    Raises:
        ValueError: if the file has too many pixels, or several pictures that are not the previews of a camera.
    """
    package("PIL.MpoImagePlugin")   # without this import, Pillow raises KeyError for a damaged JPEG
    module = package("PIL.Image")
    try:
        picture = module.open(path, formats=["JPEG", "MPO"] if kind == "JPEG" else [kind])
    except module.DecompressionBombError as err:
        limit = 2 * module.MAX_IMAGE_PIXELS
        fix = "save the picture as TIFF, which has no limit"
        raise ValueError(f"expected at most {limit} pixels, got more: {fix}") from err
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
        picture.close()
        fix = "save each picture in its own file, or a volume as .npy or .nii.gz"
        raise ValueError(f"expected one picture, got {frames} in one file; {fix}")
    return picture


def _check_png(path: Path) -> None:
    """Raise ValueError if a checksum of a PNG is wrong or data are missing. Pillow accepts some of these files."""
    with open_picture(path, "PNG") as picture:
        try:
            picture.verify()
        except SyntaxError as err:
            raise ValueError(f"expected a whole PNG, got a damaged file: {err}; copy the file again") from err
    data = path.read_bytes()
    width, height, bits, color_type, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    sizes = [
        (-(-(height - top) // row_step), -(-(width - left) // column_step))
        for top, left, row_step, column_step in PASSES[interlace]
    ]
    pixel_bits = bits * PNG_CHANNELS[color_type]
    expected = sum(rows * (1 + -(-columns * pixel_bits // 8)) for rows, columns in sizes if columns > 0)
    if (got := _count_decompressed(data)) < expected:   # Pillow would fill up with 0
        raise ValueError(f"expected a whole PNG, got {got} of {expected} bytes of samples; copy the file again")


def _count_decompressed(data: bytes) -> int:
    """Return the number of bytes that the compressed samples of a PNG file, `data`, decompress to (chunks IDAT)."""
    decompressor, offset, count = zlib.decompressobj(), 8, 0
    while offset + 8 <= len(data):
        size = int.from_bytes(data[offset : offset + 4], "big")
        if data[offset + 4 : offset + 8] == b"IDAT":
            count += len(decompressor.decompress(data[offset + 8 : offset + 8 + size]))
        offset += size + 12
    return count


def _has_late_metadata(path: Path) -> bool:
    """Whether EXIF or XMP data, which may have the orientation, follow the samples of a PNG."""
    is_late = False
    with path.open("rb") as file:
        file.seek(8)   # past the signature
        while len(chunk_header := file.read(8)) == 8:
            size, kind = int.from_bytes(chunk_header[:4], "big"), chunk_header[4:]
            content_start = file.read(min(size, len(EXIF_TEXT)))
            is_late |= kind == b"IDAT"
            if is_late and (kind == b"eXIf" or content_start.startswith((EXIF_TEXT, XMP_TEXT))):
                return True
            file.seek(size - len(content_start) + 4, 1)   # past the checksum
    return False


def _orientation(picture: Any, is_whole: bool) -> int:
    """Return the orientation that EXIF declares, 1 to 8.

    Args:
        picture: an image of Pillow.
        is_whole: whether to read the whole file for the EXIF data, not only the header.
    """
    # getexif of a PNG would read the whole file.
    exif = picture.getexif() if is_whole else package("PIL.Image").Image.getexif(picture)
    return valid_orientation(exif.get(ORIENTATION, 1))


def palette_of(picture: Any) -> NDArray[Any]:
    """Return the colours in the palette of an image of Pillow, (K, 3), uint8."""
    return np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
