"""Pictures: PNG, JPEG, BMP, GIF, WebP and PNM, read by Pillow where it gives what is stored; JPEG 2000 by imagecodecs.

What Pillow rescales, inverts or cuts to 8 bits is found in each file's own head.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .extra import package
from .orientation import upright, upright_size, valid_orientation
from .source import Source, channels_first, largest_integer

ORIENTATION: Final = 0x0112   # EXIF's tag
MODES: Final = {"1": 1, "L": 1, "P": 1, "I;16": 1, "I;16B": 1, "I": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
HEAD: Final = 4096   # bytes that a head fits into
ADAM7: Final = (((0, 0, 1, 1),), (   # first row, first column and steps of each pass of a PNG, interlaced or not
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
))   # fmt: skip
PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}   # by colour type


def png(path: Path) -> Source:
    """Grey of 1, 2, 4, 8 or 16 bits, colours of 8 or 16, palettes; all with the values that the file stores."""
    bits, kind = struct.unpack_from("BB", _head(path), 24)
    if kind == 0 and bits in (2, 4):   # Pillow multiplies these, so that the largest is 255
        return _by_pillow(path, "PNG", bits=bits, change=lambda array: array // (255 // (2**bits - 1)))
    if bits == 16 and kind:   # Pillow would drop half of the bits
        return _by_pillow(path, "PNG", np.dtype(np.uint16), decode=_deep_png, channels=PNG_CHANNELS[kind])
    return _by_pillow(path, "PNG", np.dtype(np.uint16) if bits == 16 else None)


def _deep_png(path: Path) -> NDArray[Any]:
    """(H, W, C) of 16 bits, without the channel that a transparent colour adds."""
    data = path.read_bytes()
    array = np.asarray(package("imagecodecs").png_decode(data))
    return array[..., : PNG_CHANNELS[data[25]]]


def jpeg(path: Path) -> Source:
    """8 bits, grey, RGB or CMYK; of a camera's file with previews the picture itself."""
    if (bits := _jpeg_bits(path)) not in (8, None):
        raise ValueError(f"expected a JPEG of 8 bits, got one of {bits} bits: convert it to PNG or TIFF of 16 bits")
    lossy = "expected a mask that keeps its numbers, got JPEG, which changes them; save it as PNG"
    return _by_pillow(path, "JPEG", not_a_mask=lossy)


def _jpeg_bits(path: Path) -> int | None:
    """The bits of a sample, from the header of the frame (ITU-T T.81, B.2.2); None where there is none."""
    with path.open("rb") as file:
        file.seek(2)   # past the start of the image
        while len(head := file.read(5)) == 5 and head[0] == 0xFF:
            if head[1] in range(0xC0, 0xD0) and head[1] not in (0xC4, 0xC8, 0xCC):   # a frame; the others are tables
                return head[4]
            file.seek(int.from_bytes(head[2:4], "big") - 3, 1)   # to the next segment
    return None


def bmp(path: Path) -> Source:
    """Of 8 bits or fewer, with a palette or without, or colours; no mask where these have 16 bits in all."""
    head = _head(path)
    core = int.from_bytes(head[14:18], "little") == 12
    bits = int.from_bytes(head[24:26] if core else head[28:30], "little")
    rescaled = f"expected samples of 8 bits, got colours of {bits} bits together, which are rescaled; save it as PNG"
    with _opened(path, "BMP") as picture:   # Pillow takes the depth of grey from the number of colours in the palette
        is_misread = {"1": 1, "L": 8}.get(picture.mode, bits) != bits
    return _by_pillow(
        path, "BMP", not_a_mask=rescaled if bits == 16 else None, decode=_indices_of_bmp if is_misread else None
    )


def _indices_of_bmp(path: Path) -> NDArray[Any]:
    """The samples (H, W) of a BMP whose palette is grey: with a first colour that is not, Pillow reads them all."""
    data = bytearray(path.read_bytes())
    data[14 + int.from_bytes(data[14:18], "little")] ^= 1   # the blue of the palette's first colour
    with package("PIL.Image").open(BytesIO(data), formats=["BMP"]) as picture:
        array, colors = np.asarray(picture), len(_palette(picture))
    if array.max() >= colors:
        raise ValueError(f"expected indices into a palette of {colors} colours, got {array.max()}")
    return array


def gif(path: Path) -> Source:
    """A palette, whose order is not kept by what saves a GIF: masks are read by their colours."""
    return _by_pillow(path, "GIF", has_stable_indices=False)


def webp(path: Path) -> Source:
    """RGB or RGBA of 8 bits; a mask only where it is lossless, and without opacity, under which colours are lost."""
    lossy = "expected a mask that keeps its numbers, got lossy WebP; save it as PNG"
    source = _by_pillow(path, "WEBP", not_a_mask=None if _is_lossless_webp(path) else lossy)
    if source.opacity is not None and not source.not_a_mask:
        return replace(source, not_a_mask=lossy.replace("lossy WebP", "WebP with opacity, which may change them"))
    return source


def _is_lossless_webp(path: Path) -> bool:
    """Whether the picture is in a chunk VP8L, and not in one VP8."""
    with path.open("rb") as file:
        file.seek(12)   # past RIFF, its size and WEBP
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8L", b"VP8 "):
                return head[:4] == b"VP8L"
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, 1)
    return False


def pnm(path: Path) -> Source:
    """PGM of 8 or 16 bits, PPM of 8, PBM; Pillow rescales other maxima, and PBM's 1 is black."""
    magic, *numbers = _tokens(_head(path))
    wanted = 2 if magic in (b"P1", b"P4") else 3
    if len(numbers) < wanted or not all(map(bytes.isdigit, numbers[:wanted])):
        raise ValueError(f"expected a size in the head of a PNM, got {b' '.join(numbers)[:40]!r}; save it anew")
    if magic in (b"P1", b"P4"):
        _check_alone(path, magic)
        inverted = "expected a mask whose largest value is white, got PBM, whose 1 is black; save it as PNG"
        return _by_pillow(path, "PPM", not_a_mask=inverted)
    maximum = int(numbers[2])
    if maximum != 255 and not (maximum == 65535 and magic in (b"P2", b"P5")):
        raise ValueError(f"expected PGM of maximum 255 or 65535, or PPM of 255, got {maximum}; save it as PNG or TIFF")
    _check_alone(path, magic)
    return _by_pillow(path, "PPM", np.dtype(np.uint16) if maximum == 65535 else None)


def _check_alone(path: Path, magic: bytes) -> None:
    """Raise ValueError where another picture follows the samples of a PNM file, which Pillow leaves out."""
    with _opened(path, "PPM") as picture:
        bits = 1 if magic == b"P4" else 16 if picture.mode.startswith("I") else 8
        line = -(-picture.width * len(picture.getbands()) * bits // 8)
        start, is_text = picture.tile[0].offset, magic in (b"P1", b"P2", b"P3")
        end = start if is_text else start + line * picture.height
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read()
    if is_text:   # numbers, spaces and comments
        rest = b"P" if any(b"P" in line.partition(b"#")[0] for line in rest.splitlines()) else b""
    if rest.strip():
        raise ValueError("expected one picture, got more behind it; save each in a file of its own")


def _tokens(head: bytes) -> list[bytes]:
    """The first four words of a PNM file, comments left out."""
    lines = [line.partition(b"#")[0] for line in head.splitlines()]
    return b" ".join(lines).split(maxsplit=4)[:4]


def jpeg_2000(path: Path) -> Source:
    """Any number of channels and bits, by the marker SIZ of the code stream (ISO/IEC 15444-1, A.5.1)."""
    data = path.read_bytes()
    start = data.index(b"\xff\x4f\xff\x51") + 8   # past SOC, SIZ, its length and capabilities
    width, height, left, top, _, _, _, _, channels = struct.unpack_from(">8IH", data, start)
    depths = set(data[start + 34 : start + 34 + 3 * channels : 3])
    if len(depths) != 1 or (depth := depths.pop()) & 127 > 15:
        raise ValueError("expected channels of equal depth of at most 16 bits, got others")
    bits, kind = (depth & 127) + 1, "i" if depth & 128 else "u"
    dtype = np.dtype(f"{kind}{1 if bits <= 8 else 2}")
    return Source(
        shape=(channels, height - top, width - left),
        dtype=dtype,
        load=lambda: channels_first(np.asarray(package("imagecodecs").jpeg2k_decode(data))),
        largest=largest_integer(dtype, bits),
        not_a_mask="expected a mask that keeps its numbers, got JPEG 2000, which may change them; save it as PNG",
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _by_pillow(
    path: Path,
    kind: str,
    dtype: np.dtype[Any] | None = None,
    *,
    bits: int | None = None,
    change: Callable[[NDArray[Any]], NDArray[Any]] = lambda array: array,
    decode: Callable[[Path], NDArray[Any]] | None = None,
    channels: int | None = None,
    has_stable_indices: bool = True,
    not_a_mask: str | None = None,
) -> Source:
    """A picture whose head Pillow reads.

    dtype: of the samples, where Pillow's mode doesn't say. bits: those that are stored. change: undoes what Pillow does
    to the samples. decode: another reader of the samples (H, W, C), which gives so many channels.
    """
    with _opened(path, kind) as picture:
        mode = picture.mode
        if mode not in MODES:
            raise ValueError(f"expected grey, RGB, CMYK or a palette, got {mode}")
        orientation = _orientation(picture, whole=False)
        palette = _palette(picture) if mode == "P" else None
        size = upright_size((picture.height, picture.width), orientation)
    dtype = dtype or np.dtype(bool if mode == "1" else np.uint8)

    def load() -> NDArray[Any]:
        if kind == "PNG":
            _check_png(path)
        with _opened(path, kind) as picture:
            array = change(np.asarray(picture)) if decode is None else decode(path)
            return upright(channels_first(array).astype(dtype, copy=False), _orientation(picture, whole=True))

    return Source(
        shape=(channels or MODES[mode], *size),
        dtype=dtype,
        load=load,
        largest=largest_integer(dtype, bits),
        orientation=orientation,
        opacity={"LA": 1, "RGBA": 3}.get(mode),
        palette=palette,
        has_stable_indices=has_stable_indices,
        not_a_mask=not_a_mask,
    )


def _opened(path: Path, kind: str) -> Any:
    """A picture whose head is read. More than one in a file are refused, save for a camera's previews."""
    package("PIL.MpoImagePlugin")   # or Pillow ends in a KeyError where a JPEG is none
    picture = package("PIL.Image").open(path, formats=["JPEG", "MPO"] if kind == "JPEG" else [kind])
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
        picture.close()
        raise ValueError(f"expected one picture, got {frames}; save a volume as .npy or .nii.gz")
    return picture


def _check_png(path: Path) -> None:
    """Raise ValueError where a checksum is wrong. Pillow does not compare that of the last data when it decodes."""
    with _opened(path, "PNG") as picture:
        try:
            picture.verify()
        except SyntaxError as err:
            raise ValueError(f"expected a whole PNG, got a damaged one: {err}; copy it again") from err
    data = path.read_bytes()
    width, height, bits, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    sides = [(-(-(height - top) // down), -(-(width - left) // right)) for top, left, down, right in ADAM7[interlaced]]
    line = bits * PNG_CHANNELS[kind]
    expected = sum(rows * (1 + -(-columns * line // 8)) for rows, columns in sides if columns > 0)
    if (got := _inflated(data)) < expected:
        raise ValueError(f"expected a whole PNG, got {got} of {expected} bytes; copy it again")


def _inflated(data: bytes) -> int:
    """The bytes that the data of a PNG are once they are decompressed; Pillow takes any number, and fills up with 0."""
    inflate, at, count = zlib.decompressobj(), 8, 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            count += len(inflate.decompress(data[at + 8 : at + 8 + size]))
        at += size + 12
    return count


def _orientation(picture: Any, whole: bool) -> int:
    """EXIF's, from the head, or where the `whole` file has been read, from anywhere in it."""
    exif = picture.getexif() if whole else package("PIL.Image").Image.getexif(picture)   # a PNG's own reads all of it
    return valid_orientation(exif.get(ORIENTATION, 1))


def _palette(picture: Any) -> NDArray[Any]:
    """(K, 3) of 8 bits."""
    return np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
