"""Reading of TIFF with tifffile: the metadata from the tags, and the samples as the file stores them."""

from __future__ import annotations

from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .extra import package
from .labels import IGNORE
from .orientation import upright, upright_size, valid_orientation
from .source import FileInfo, largest_integer

ORIENTATION: Final = 274
NO_DATA: Final = 42113   # GDAL's tag
REDUCED, MASK_PAGE = 1, 4   # bits of NewSubfileType: previews and transparency masks of a page
LOSSLESS: Final = {
    "NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "ZSTD", "LZMA", "CCITTRLE", "CCITTFAX3", "CCITTFAX4", "PNG",
}   # fmt: skip
READABLE: Final = {"MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "SEPARATED"}   # tifffile decodes YCbCr of JPEG to RGB
WHITE: Final = (
    "photometric interpretation MinIsWhite (the smallest value is white), which some programs invert and some do not; "
    "save the image as MinIsBlack"
)


LOSSY: Final = "it changes values, so save the mask again from its source with compression LZW or none"


def describe(path: Path) -> FileInfo:
    """Return the metadata of a TIFF with one image.

    Raises:
        ValueError: if there are several images, if the declared type of the samples is not supported, or if samples are
            missing. The message does not name the file.
    """
    with package("tifffile").TiffFile(path) as file:
        page = _only_page(file)
        shape, channel_axis = _layout(page)
        photometric, compression = page.photometric.name, page.compression.name
        orientation = valid_orientation(page.tags.valueof(ORIENTATION, default=1))
        palette = _palette(page.colormap.T) if photometric == "PALETTE" else None
        is_lossless = compression in LOSSLESS
        return FileInfo(
            shape=(shape[0], *upright_size(shape[1:], orientation)),
            orientation=orientation,
            on_map=_on_map(page),
            no_data=_no_data(page),
            dtype=page.dtype,
            load=lambda: upright(_samples(path, channel_axis), orientation),
            largest=largest_integer(page.dtype, page.bitspersample),
            opacity=_opacity(page, shape[0]),
            palette=palette,
            is_white_least=photometric == "MINISWHITE",
            not_an_image=f"expected grey or colours, got {WHITE}" if photometric == "MINISWHITE" else None,
            not_a_mask=None if is_lossless else f"expected lossless compression, got {compression} in a TIFF: {LOSSY}",
        )


def _on_map(page: Any) -> NDArray[Any] | None:
    """Return the affine (4, 4) from columns and rows to map coordinates, from GeoTIFF's tags; None without these tags.

    The tags have the matrix, or one tie point and the size of a pixel. Source: OGC GeoTIFF 1.1, B.6.
    """
    matrix, scale, ties = (page.tags.valueof(code) for code in (34264, 33550, 33922))
    if matrix is not None:
        return np.reshape(matrix, (4, 4)).astype(np.float64)
    if scale is None or ties is None or len(ties) != 6:
        return None
    column, row, _, x, y, _ = ties
    affine = np.diag([scale[0], -scale[1], 1.0, 1.0])
    affine[:2, 3] = x - column * scale[0], y + row * scale[1]
    return affine


def _no_data(page: Any) -> float | None:
    """Return the value that GDAL's tag declares as no data; None without this tag, or if it has no number.

    The tag's text is parsed here, since tifffile's parser fails for the most negative float32.
    """
    with suppress(TypeError, ValueError):
        return float(page.tags.valueof(NO_DATA))
    return None


def _palette(colors: NDArray[Any]) -> NDArray[Any]:
    """Return the colours (K, 3) of TIFF's 16-bit colour map: as uint8 if they have 8 bits, else as uint16.

    Writers store 8-bit colours in the 16-bit tag unchanged, times 256, or times 257.
    """
    if colors.max() < 256:
        return colors.astype(np.uint8)
    upper, lower = colors >> 8, colors & 255
    return upper.astype(np.uint8) if (lower == 0).all() or (lower == upper).all() else colors


def _opacity(page: Any, channels: int) -> int | None:
    """Return the index of the channel with the opacity; None if the extra samples of a page contain no opacity.

    Args:
        page: a page of tifffile.
        channels: the number of all channels; the extra samples are the last of them.
    """
    kinds = [extra.name for extra in page.extrasamples]
    return next((channels - len(kinds) + i for i, kind in enumerate(kinds) if kind != "UNSPECIFIED"), None)


def _only_page(file: Any) -> Any:
    """Return the page of a file with one image; previews and transparency masks do not count.

    Raises:
        ValueError: if there are several images, if the samples are not supported, or if samples are missing.
    """
    pages = [page for page in file.pages if not int(page.subfiletype) & (REDUCED | MASK_PAGE)]
    frames = len(pages)
    # ImageJ may store many images after one page. The series of an OME-TIFF also counts the images in other files.
    if frames == 1 and not file.is_ome and (total := file.series[0].size) > pages[0].size:
        frames = total // pages[0].size
    if frames != 1:
        fix = "save each picture in its own file, or a volume as .npy or .nii.gz"
        raise ValueError(f"expected one picture, got {frames} in one file; {fix}")
    page = pages[0].aspage()
    photometric = page.photometric.name if hasattr(page.photometric, "name") else str(page.photometric)
    if photometric not in READABLE and not (photometric == "YCBCR" and page.compression.name in ("JPEG", "OJPEG")):
        got = f"photometric interpretation {photometric}"
        raise ValueError(f"expected grey, RGB, CMYK or a palette, got {got}: save the file as RGB")
    if page.dtype is None or page.dtype.kind not in "biuf" or not isinstance(page.bitspersample, int):
        got = f"sample format {getattr(page.sampleformat, 'name', page.sampleformat)} with {page.bitspersample} bits"
        fix = "save samples of 8, 16 or 32 bits"
        raise ValueError(f"expected real samples with equal numbers of bits in all channels, got {got}; {fix}")
    _check_strips(page)
    return page


def _check_strips(page: Any) -> None:
    """Raise ValueError if strips or tiles of a page were never written: reading them would return arbitrary values."""
    count = prod(page.chunked)
    written = sum(offset > 0 and size > 0 for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False))
    if written < count:
        got = f"{written}, with {count - written} never written"
        fix = "write the file again with values for all pixels"
        raise ValueError(f"expected all {count} strips or tiles, got {got}: {fix}")


def _check_transparency(file: Any) -> None:
    """Raise ValueError if a transparency mask, such as GDAL's internal mask, marks pixels as invalid."""
    for page in file.pages:
        if int(page.subfiletype) & (REDUCED | MASK_PAGE) != MASK_PAGE:
            continue
        if invalid_count := int(np.count_nonzero(page.asarray() == 0)):
            got = f"{invalid_count} pixels that the file's transparency mask marks as invalid"
            fix = f"fill these pixels (in a mask of classes with {IGNORE}), and save the file without transparency mask"
            raise ValueError(f"expected a value in every pixel, got {got}: {fix}")


def _layout(page: Any) -> tuple[tuple[int, ...], int | None]:
    """Return the shape (C, H, W) of a page, and the channel axis of tifffile's array; None if it has no such axis.

    Raises:
        ValueError: if the page has other axes, or a size is 0.
    """
    sizes = dict(zip(page.axes, page.shape, strict=True))
    if set(sizes) - set("SYX") or 0 in page.shape:
        fix = "save a volume as .npy or .nii.gz"
        raise ValueError(f"expected an image (H, W) or (H, W, C), got axes {page.axes} of sizes {page.shape}: {fix}")
    return (sizes.get("S", 1), sizes["Y"], sizes["X"]), page.axes.index("S") if "S" in sizes else None


def _samples(path: Path, channel_axis: int | None) -> NDArray[Any]:
    """Return the samples (C, H, W) of a file, not rotated; `channel_axis` as `_layout` returns it."""
    with package("tifffile").TiffFile(path) as file:
        array = np.asarray(_only_page(file).asarray())
        _check_transparency(file)
    return array[None] if channel_axis is None else np.moveaxis(array, channel_axis, 0)
