"""Reading of PNG, JPEG, BMP, GIF, WebP and PNM with Pillow, and of JPEG 2000 with imagecodecs.

Samples are returned as the file stores them. Pillow rescales, inverts or truncates some formats to 8 bits. This module
detects such files from their header, and restores their samples or raises ValueError.

Each function that is named after a format returns the metadata of a file of that format, as `FileInfo`, and raises
ValueError for a file that is damaged or has samples that cannot be read unchanged.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .extra import package
from .pillow import PNG_CHANNELS, by_pillow, open_picture, palette_of
from .source import TO_PNG, FileInfo, channels_first, largest_integer

HEAD: Final = 4096   # number of bytes that are read as the header


def png(path: Path) -> FileInfo:
    """Return the metadata of a PNG with grey, colours or a palette, of 1 to 16 bits."""
    bits, color_type = struct.unpack_from("BB", _header(path), 24)
    if color_type == 0 and bits in (2, 4):   # Pillow scales these greys to a maximum of 255
        return by_pillow(path, "PNG", bits=bits, restore=lambda array: array // (255 // (2**bits - 1)))
    if bits == 16 and color_type:   # Pillow drops the low 8 bits of colours
        return by_pillow(path, "PNG", np.dtype(np.uint16), decode=_decode_png, channels=PNG_CHANNELS[color_type])
    return by_pillow(path, "PNG", np.dtype(np.uint16) if bits == 16 else None)


def _decode_png(path: Path) -> NDArray[Any]:
    """Return the samples (H, W, C) of a 16-bit PNG, decoded by imagecodecs."""
    data = path.read_bytes()
    array = np.asarray(package("imagecodecs").png_decode(data))
    return array[..., : PNG_CHANNELS[data[25]]]   # imagecodecs adds an opacity if a colour is transparent


def jpeg(path: Path) -> FileInfo:
    """Return the metadata of a JPEG of 8 bits. Of a file with previews, as cameras write them, read the first picture.

    Raises:
        ValueError: if the JPEG has other than 8 bits.
    """
    if (bits := _jpeg_bits(path)) not in (8, None):
        got = f"a JPEG of {bits} bits per sample: convert it to PNG or TIFF of 16 bits"
        raise ValueError(f"expected a JPEG of 8 bits, got {got}")
    lossy_message = "expected a mask in a lossless format, got JPEG, which changes values; save the mask as PNG"
    return by_pillow(path, "JPEG", not_a_mask=lossy_message)


def _jpeg_bits(path: Path) -> int | None:
    """Return the bits of a JPEG's samples, from its frame header (ITU-T T.81, B.2.2); None if it has no such header."""
    with path.open("rb") as file:
        file.seek(2)   # skip the marker SOI
        while len(segment := file.read(5)) == 5 and segment[0] == 0xFF:
            if segment[1] in range(0xC0, 0xD0) and segment[1] not in (0xC4, 0xC8, 0xCC):   # SOF; not DHT, JPG or DAC
                return segment[4]
            file.seek(int.from_bytes(segment[2:4], "big") - 3, 1)   # skip the rest of the segment
    return None


def bmp(path: Path) -> FileInfo:
    """Return the metadata of a BMP with a palette or colours."""
    header = _header(path)
    has_core_header = int.from_bytes(header[14:18], "little") == 12
    bits = int.from_bytes(header[24:26] if has_core_header else header[28:30], "little")
    got = f"{bits} bits per pixel, which programs rescale; save the mask as PNG"
    rescaled_message = f"expected a mask with 8 bits per channel, got {got}"
    with open_picture(path, "BMP") as picture:   # for a grey palette, Pillow derives the bits from its length
        has_wrong_bits = {"1": 1, "L": 8}.get(picture.mode, bits) != bits
    not_a_mask = rescaled_message if bits == 16 else None
    return by_pillow(path, "BMP", not_a_mask=not_a_mask, decode=_decode_grey_bmp if has_wrong_bits else None)


def _decode_grey_bmp(path: Path) -> NDArray[Any]:
    """Return the palette indices (H, W) of a BMP with a grey palette. Raise ValueError if one is beyond the palette.

    Pillow misreads only palettes of greys. Therefore one colour of the palette is changed in memory, not in the file,
    before Pillow decodes it.
    """
    data = bytearray(path.read_bytes())
    data[14 + int.from_bytes(data[14:18], "little")] ^= 1   # the blue of the first colour
    with package("PIL.Image").open(BytesIO(data), formats=["BMP"]) as picture:
        array, colors = np.asarray(picture), len(palette_of(picture))
    if array.max() >= colors:
        fix = "save the file again, for example as RGB"
        expected = f"expected indices below {colors}, the number of colours in the palette"
        raise ValueError(f"{expected}, got {array.max()}: {fix}")
    return array


def gif(path: Path) -> FileInfo:
    """Return the metadata of a GIF with one picture.

    Programs reorder the palette of a GIF, so the values of a mask are its colours, not its palette indices.
    """
    return by_pillow(path, "GIF", has_stable_indices=False)


def webp(path: Path) -> FileInfo:
    """Return the metadata of a WebP.

    Only a lossless WebP without opacity can be a mask: WebP may change the colours of transparent pixels.
    """
    lossy_message = "expected a mask in a lossless format, got lossy WebP; save the mask as PNG"
    info = by_pillow(path, "WEBP", not_a_mask=None if _is_lossless_webp(path) else lossy_message)
    if info.opacity is not None and not info.not_a_mask:
        message = lossy_message.replace("lossy WebP", "WebP with opacity, which may change values")
        return replace(info, not_a_mask=message)
    return info


def _is_lossless_webp(path: Path) -> bool:
    """Whether a WebP is lossless: its samples are in a chunk VP8L, not VP8."""
    with path.open("rb") as file:
        file.seek(12)   # skip "RIFF", the size and "WEBP"
        while len(chunk := file.read(8)) == 8:
            if chunk[:4] in (b"VP8L", b"VP8 "):
                return chunk[:4] == b"VP8L"
            size = int.from_bytes(chunk[4:], "little")
            file.seek(size + size % 2, 1)
    return False


def pnm(path: Path) -> FileInfo:
    """Return the metadata of a PGM with maximum 255 or 65535, a PPM with maximum 255, or a PBM.

    Raises:
        ValueError: if the header is damaged, if the maximum differs, as Pillow would rescale the samples, or if the
            file has several pictures.
    """
    magic, *numbers = _tokens(_header(path))
    count = 2 if magic in (b"P1", b"P4") else 3
    if len(numbers) < count or not all(map(bytes.isdigit, numbers[:count])):
        got = repr(b" ".join(numbers)[:40])
        raise ValueError(f"expected a size in the header of a PNM, got {got}; save the file again")
    if magic in (b"P1", b"P4"):
        _check_single(path, magic)
        message = "expected a mask whose largest value is white, got PBM, whose 1 is black; save the mask as PNG"
        return by_pillow(path, "PPM", not_a_mask=message)
    maximum = int(numbers[2])
    if maximum != 255 and not (maximum == 65535 and magic in (b"P2", b"P5")):
        expected = "PGM of maximum 255 or 65535, or PPM of 255"
        raise ValueError(f"expected {expected}, got {maximum} in the header; save the file as PNG or TIFF")
    _check_single(path, magic)
    return by_pillow(path, "PPM", np.dtype(np.uint16) if maximum == 65535 else None)


def _check_single(path: Path, magic: bytes) -> None:
    """Raise ValueError if a PNM has more pictures after the first, which Pillow would ignore.

    Args:
        path: the file.
        magic: the first two bytes of the file, b"P1" to b"P6".
    """
    with open_picture(path, "PPM") as picture:
        bits = 1 if magic == b"P4" else 16 if picture.mode.startswith("I") else 8
        row_bytes = -(-picture.width * len(picture.getbands()) * bits // 8)
        data_start, is_text = picture.tile[0].offset, magic in (b"P1", b"P2", b"P3")
        data_end = data_start if is_text else data_start + row_bytes * picture.height
    with path.open("rb") as file:
        file.seek(data_end)
        remaining_bytes = file.read()
    # In text formats, the samples are among the remaining bytes too; a "P" outside comments begins the next picture.
    if is_text:
        has_more = any(b"P" in line.partition(b"#")[0] for line in remaining_bytes.splitlines())
    else:
        has_more = bool(remaining_bytes.strip())
    if has_more:
        raise ValueError("expected one picture, got more data after it; save each picture in its own file")


def _tokens(first_bytes: bytes) -> list[bytes]:
    """Return the first four words in `first_bytes`, the beginning of a PNM file, without comments."""
    lines = [line.partition(b"#")[0] for line in first_bytes.splitlines()]
    return b" ".join(lines).split(maxsplit=4)[:4]


def jpeg_2000(path: Path) -> FileInfo:
    """Return the metadata of a JPEG 2000, from the marker SIZ of the code stream (ISO/IEC 15444-1, A.5.1).

    Raises:
        ValueError: if the file has no code stream, if the channels have different integer types or more than 16 bits,
            or if there are none.
    """
    data = path.read_bytes()
    if (code_stream := data.find(b"\xff\x4f\xff\x51")) < 0:   # the markers SOC and SIZ
        raise ValueError("expected a JPEG 2000 with a code stream, got none: copy the file again, or save it again")
    start = code_stream + 8   # skip the markers, the length of SIZ and capabilities
    width, height, left, top, _, _, _, _, channels = struct.unpack_from(">8IH", data, start)
    depths = set(data[start + 34 : start + 34 + 3 * channels : 3])   # bits - 1, plus 128 for signed integers
    if len(depths) != 1 or (depth := min(depths)) & 127 > 15:
        got = " and ".join(f"{'' if depth & 128 else 'u'}int{(depth & 127) + 1}" for depth in sorted(depths))
        raise ValueError(f"expected channels of one integer type, of at most 16 bits, got {got or 'none'}: {TO_PNG}")
    bits, kind = (depth & 127) + 1, "i" if depth & 128 else "u"
    dtype = np.dtype(f"{kind}{1 if bits <= 8 else 2}")
    return FileInfo(
        shape=(channels, height - top, width - left),
        dtype=dtype,
        load=lambda: channels_first(np.asarray(package("imagecodecs").jpeg2k_decode(data))),
        largest=largest_integer(dtype, bits),
        not_a_mask="expected a mask in a lossless format, got JPEG 2000, which may change values; save the mask as PNG",
    )


def _header(path: Path) -> bytes:
    """Return the first bytes of a file, as many as a header may have."""
    with path.open("rb") as file:
        return file.read(HEAD)
