"""TIFF, read by tifffile: declared bits, sign, planes and photometric interpretation, samples as they are stored."""

from __future__ import annotations

from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .extra import package
from .orientation import known, turned, upright
from .source import Source, largest_integer

ORIENTATION: Final = 274
NO_DATA: Final = 42113   # GDAL's
REDUCED, MASK_PAGE = 1, 4   # bits of NewSubfileType: previews and transparency masks of a page
LOSSLESS: Final = {
    "NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "ZSTD", "LZMA", "CCITTRLE", "CCITTFAX3", "CCITTFAX4", "PNG",
}   # fmt: skip
READABLE: Final = {"MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "SEPARATED"}   # YCbCr of JPEG is read as RGB
WHITE: Final = (
    "photometric interpretation MinIsWhite, whose least value is white, which programs read as it is or inverted; "
    "save it as MinIsBlack"
)


def describe(path: Path) -> Source:
    """The one image of a TIFF. Raises ValueError for several, and for samples whose meaning isn't declared."""
    with package("tifffile").TiffFile(path) as file:
        page = _only_page(file)
        shape, channel_axis = _layout(page)
        kind, compression = page.photometric.name, page.compression.name
        orientation = known(page.tags.valueof(ORIENTATION, default=1))
        palette = _palette(page.colormap.T) if kind == "PALETTE" else None
        is_lossless = compression in LOSSLESS
        return Source(
            shape=(shape[0], *turned(shape[1:], orientation)),
            orientation=orientation,
            on_map=_on_map(page),
            no_data=_no_data(page),
            dtype=page.dtype,
            load=lambda: upright(_samples(path, channel_axis), orientation),
            largest=largest_integer(page.dtype, page.bitspersample),
            opacity=_opacity(page, shape[0]),
            palette=palette,
            is_white_least=kind == "MINISWHITE",
            not_an_image=f"expected grey or colours, got {WHITE}" if kind == "MINISWHITE" else None,
            not_a_mask=None if is_lossless else f"expected lossless compression, got {compression} in a TIFF",
        )


def _on_map(page: Any) -> NDArray[Any] | None:
    """Where GeoTIFF's tags place pixels: a matrix, or one tie point and the sides of a pixel (GeoTIFF 1.1, B.6)."""
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
    """The value that GDAL's tag declares as no data. tifffile's own reading of it fails on the least float32."""
    with suppress(TypeError, ValueError):
        return float(page.tags.valueof(NO_DATA))
    return None


def _palette(colors: NDArray[Any]) -> NDArray[Any]:
    """(K, 3): of 8 bits where the colours are, which writers put into 16 as they are, times 256 or times 257."""
    if colors.max() < 256:
        return colors.astype(np.uint8)
    upper, lower = colors >> 8, colors & 255
    return upper.astype(np.uint8) if (lower == 0).all() or (lower == upper).all() else colors


def _opacity(page: Any, channels: int) -> int | None:
    """The channel that is opacity, which the extra samples after the colours' may hold anywhere."""
    kinds = [extra.name for extra in page.extrasamples]
    return next((channels - len(kinds) + i for i, kind in enumerate(kinds) if kind != "UNSPECIFIED"), None)


def _only_page(file: Any) -> Any:
    """The page of a file that has one, previews aside, once its samples are seen to be readable."""
    pages = [page for page in file.pages if not int(page.subfiletype) & (REDUCED | MASK_PAGE)]
    frames = len(pages)
    if frames == 1 and (total := file.series[0].size) > pages[0].size:   # ImageJ may put many behind one page
        frames = total // pages[0].size
    if frames != 1:
        raise ValueError(f"expected one picture, got {frames}; save a volume as .npy or .nii.gz")
    page = pages[0].aspage()
    kind = page.photometric.name if hasattr(page.photometric, "name") else str(page.photometric)
    if kind not in READABLE and not (kind == "YCBCR" and page.compression.name in ("JPEG", "OJPEG")):
        got = f"photometric interpretation {kind}"
        raise ValueError(f"expected grey, RGB, CMYK or a palette, got {got}: save it as RGB")
    if page.dtype is None or page.dtype.kind not in "biuf" or not isinstance(page.bitspersample, int):
        got = f"{getattr(page.sampleformat, 'name', page.sampleformat)} of {page.bitspersample} bits"
        raise ValueError(f"expected real samples of equal bits, got {got}; save real numbers of 8, 16 or 32 bits")
    _check_parts(page)
    return page


def _check_parts(page: Any) -> None:
    """Raise ValueError where strips or tiles were never written, which would be read as zeros or as other bytes."""
    parts = prod(page.chunked)
    written = sum(min(part) > 0 for part in zip(page.dataoffsets, page.databytecounts, strict=False))
    if written < parts:
        got = f"{written} and {parts - written} never written"
        fix = "write it again, or where that stands for nothing, fill it with the value meant"
        raise ValueError(f"expected all {parts} strips or tiles, got {got}: {fix}")


def _layout(page: Any) -> tuple[tuple[int, ...], int | None]:
    """(C, H, W), and the axis of the channels among those that tifffile gives."""
    sizes = dict(zip(page.axes, page.shape, strict=True))
    if set(sizes) - set("SYX") or 0 in page.shape:
        raise ValueError(f"expected an image (H, W) or (H, W, C), got axes {page.axes} of {page.shape}")
    return (sizes.get("S", 1), sizes["Y"], sizes["X"]), page.axes.index("S") if "S" in sizes else None


def _samples(path: Path, channel_axis: int | None) -> NDArray[Any]:
    """(C, H, W) as stored."""
    with package("tifffile").TiffFile(path) as file:
        array = np.asarray(_only_page(file).asarray())
    return array[None] if channel_axis is None else np.moveaxis(array, channel_axis, 0)
