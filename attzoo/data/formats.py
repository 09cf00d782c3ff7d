"""The file formats: the first bytes of their files, and the function that reads the metadata of each format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..files import open_regular
from . import pictures, tiff, volumes
from .source import DICOM, TO_PNG, VOLUMES, FileInfo, ending, is_dicom

Reader = Callable[[Path], FileInfo]   # returns the metadata of a file
READERS: Final[tuple[tuple[str, tuple[bytes, ...], Reader], ...]] = (
    ("PNG", (b"\x89PNG\r\n\x1a\n",), pictures.png),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff.describe),
    ("JPEG", (b"\xff\xd8\xff",), pictures.jpeg),
    ("BMP", (b"BM",), pictures.bmp),
    ("GIF", (b"GIF87a", b"GIF89a"), pictures.gif),
    ("WebP", (b"RIFF",), pictures.webp),
    ("PNM", (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), pictures.pnm),
    ("JPEG 2000", (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), pictures.jpeg_2000),
)
POINTERS: Final = {   # first bytes of pointer files, and how to get the files that they stand for
    b"version https://git-lfs.github.com/": "a pointer of Git LFS: run git lfs pull to download the file",
    b"/annex/objects/": "a pointer of git-annex: run git annex get to download the file",
}


def describe(path: Path) -> FileInfo:
    """Return the metadata of an image, mask or volume file.

    The format of a volume is recognized by the ending of its name, that of a picture by its first bytes.

    Raises:
        OSError: if the file cannot be opened, or is not a regular file.
        ValueError: if the format is unknown, or if attzoo cannot read this file of the format. The message does not
            name the file.
    """
    with open_regular(path) as file:   # opening a pipe would block
        first_bytes = file.read(132)
    if not first_bytes:
        raise ValueError("expected an image or a volume, got an empty file: copy or download it again")
    if got := next((text for signature, text in POINTERS.items() if first_bytes.startswith(signature)), None):
        raise ValueError(f"expected an image or a volume, got {got}")
    if ending(path) in VOLUMES:
        return volumes.describe(path)
    for _, signatures, reader in READERS:
        if first_bytes.startswith(signatures):
            return reader(path)
    readable_formats = f"{', '.join(name for name, _, _ in READERS)}, or a volume as .npy, .nii or .nii.gz"
    got = DICOM if is_dicom(first_bytes) else f"another format: {TO_PNG}, or a volume to .nii.gz"
    raise ValueError(f"expected {readable_formats}, got {got}")
