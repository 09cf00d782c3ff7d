"""Images and masks as files: pictures of any format that Pillow reads, and volumes as .npy, .nii and .nii.gz.

An image is (C, *S) in the dtype of its file, a mask int64 (*S) of class indices, with two or three spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..contract import Array
from ..extras import missing

IGNORE: Final = 255   # the class index that no loss and no metric counts
SPLIT: Final = ("images", "masks")
CAMVID: Final = ("train_images", "train_labels", "valid_images", "valid_labels")
VOLUMES: Final = (".npy", ".nii", ".nii.gz")
ORIENTATION: Final = 0x0112   # EXIF's tag; from 5 on width and height change places

Pair = tuple[Path, Path]   # of an image and its mask


# ---- finding ---------------------------------------------------------------------------------------


def find(folder: str | Path, fraction: float = 0.2, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """The pairs in a folder to train on and those to validate on, each sorted by name.

    The folder holds either train_images, train_labels, valid_images and valid_labels, or images and masks; of the
    latter, a random `fraction` of the pairs, at least one and not all, is for validation, the same for the same seed.
    An image and its mask have the same name, save for the ending. Hidden files are passed over.
    Raises ValueError, naming the file or folder, for anything else; OSError for a folder that cannot be read.
    """
    folder = Path(folder)
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    camvid, split = (there & set(names) for names in (CAMVID, SPLIT))
    if bool(camvid) == bool(split):
        wanted = f"{', '.join(CAMVID[:-1])} and {CAMVID[-1]}, or {' and '.join(SPLIT)}"
        raise ValueError(f"expected folders {wanted} in {folder}, got {_some(sorted(there)) or 'none'}")
    if camvid:
        return _pairs(folder, *CAMVID[:2]), _pairs(folder, *CAMVID[2:])
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    pairs = _pairs(folder, *SPLIT)
    if len(pairs) < 2:
        raise ValueError(f"expected at least two images in {folder / SPLIT[0]}, one to validate on, got {len(pairs)}")
    held = max(1, min(round(fraction * len(pairs)), len(pairs) - 1))
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [pairs[i] for i in sorted(order[held:])], [pairs[i] for i in sorted(order[:held])]


def ending(path: Path) -> str:
    """The ending of a file's name, lower case; ".nii.gz" is one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _pairs(folder: Path, images: str, masks: str) -> list[Pair]:
    """Each image of a folder with the mask of the same name."""
    found, labels = by_name(folder / images), by_name(folder / masks)
    if lost := [path for name, path in found.items() if name not in labels]:
        raise ValueError(f"expected a mask in {folder / masks} for every image, got none for {_some(lost)}")
    if lost := [path for name, path in labels.items() if name not in found]:
        raise ValueError(f"expected an image in {folder / images} for every mask, got none for {_some(lost)}")
    return [(path, labels[name]) for name, path in found.items()]


def by_name(folder: Path) -> dict[str, Path]:
    """The files of a folder by name without ending, sorted, save hidden ones; ValueError unless there are any."""
    if not folder.is_dir():
        raise ValueError(f"expected a folder {folder}, got none")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            raise ValueError(f"expected files only in {folder}, got the folder {path}")
        name = path.name[: len(path.name) - len(ending(path))]
        if name in found:
            raise ValueError(f"expected one file for each name, got {found[name]} and {path.name}")
        found[name] = path
    if not found:
        raise ValueError(f"expected files in {folder}, got none")
    return found


def _some(things: Sequence[Any]) -> str:
    """A few of many, as text."""
    more = f" and {len(things) - 3} more" if len(things) > 3 else ""
    return ", ".join(map(str, things[:3])) + more


# ---- reading ---------------------------------------------------------------------------------------


def read_image(path: str | Path) -> NDArray[Any]:
    """The image (C, *S) in a file, in the file's own dtype.

    Pictures keep their channels: 1 of grey, 3 of RGB, 4 of RGBA; a palette's become RGB. They are turned upright, as
    their EXIF has it. Colours are of 8 bits: of 16 Pillow would drop half, so they are refused. An array of a .npy,
    .nii or .nii.gz is (H, W), (D, H, W) or (D, H, W, C).
    Raises ValueError, naming the file, for one that cannot be read, or holds a number that is not finite.
    """
    path = Path(path)
    with _named(path):
        array = _channels_first(_content(path)) if ending(path) in VOLUMES else _picture(path, indices=False)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"expected finite numbers, got {np.count_nonzero(~np.isfinite(array))} that are not")
        return array


def read_mask(path: str | Path) -> NDArray[np.int64]:
    """The class indices (*S) in a file: its first channel, or the indices into its palette.

    Raises ValueError, naming the file, for one that cannot be read, or holds anything but whole numbers >= 0.
    """
    path = Path(path)
    with _named(path):
        array = (_channels_first(_content(path)) if ending(path) in VOLUMES else _picture(path, indices=True))[0]
        with np.errstate(invalid="ignore"):   # of what is no number, which the comparison finds
            mask: NDArray[np.int64] = array.astype(np.int64)
        if (wrong := (mask != array) | (mask < 0)).any():
            raise ValueError(f"expected whole numbers from 0 as classes, got {array[wrong].flat[0]}")
        return mask


def read_shape(path: str | Path) -> tuple[int, ...]:
    """The shape (C, *S) that `read_image` would give, from the head of the file. Raises as it does."""
    path = Path(path)
    with _named(path):
        if ending(path) in VOLUMES:
            shape = _content(path).shape
            return (1, *shape) if len(shape) < 4 else (shape[-1], *shape[:-1])
        with _opened(path) as picture:
            channels = 3 if picture.mode == "P" else len(picture.getbands())
            size = picture.height, picture.width   # of a TIFF, as Pillow will turn it
            exif = package("PIL.Image").Image.getexif(picture)   # the head's; a PNG's own way reads all of it
            lies = picture.format != "TIFF" and exif.get(ORIENTATION) in (5, 6, 7, 8)
            return (channels, *(size[::-1] if lies else size))


def read_affine(path: str | Path) -> Array | None:
    """The matrix (4, 4) from a volume's indices to millimetres where the file has one, to write a mask back with."""
    path = Path(path)
    if ending(path) not in (".nii", ".nii.gz"):
        return None
    with _named(path):
        return np.asarray(package("nibabel").load(path).affine, np.float64)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let every error name the file; readers of broken files raise what they like, even SyntaxError."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as err:
        if isinstance(err, OSError) and err.filename is not None:   # no such file, say
            raise
        raise ValueError(f"cannot read {path}: {err}") from err


def package(name: str) -> Any:
    """A package of the extra "train". Raises ModuleNotFoundError, with the install command, where it is absent."""
    try:
        return import_module(name)
    except ModuleNotFoundError as err:
        if err.name != name.partition(".")[0]:   # a broken install is not a missing one
            raise
        raise ModuleNotFoundError(missing(name, "train", "attzoo train"), name=err.name) from err


def _content(path: Path) -> Any:
    """The array in a volume's file, checked by its head; numbers are not read yet."""
    if ending(path) == ".npy":
        array = np.lib.format.open_memmap(path, mode="r")   # which takes neither an archive nor Python objects
    else:
        array = package("nibabel").load(path).dataobj
    if array.dtype.kind not in "biuf":
        raise ValueError(f"expected real numbers, got {array.dtype}")
    if not 2 <= len(array.shape) <= 4 or 0 in array.shape:
        raise ValueError(f"expected (H, W), (D, H, W) or (D, H, W, C), got {tuple(array.shape)}")
    return array


def _channels_first(content: Any) -> NDArray[Any]:
    """(H, W), (D, H, W) or (D, H, W, C) -> (C, *S), in memory and in the machine's byte order."""
    array = np.array(content)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[None] if array.ndim < 4 else np.ascontiguousarray(np.moveaxis(array, -1, 0))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A picture whose head is read.

    More than one picture in a file are refused, save for a camera's previews, and colours of 16 bits.
    """
    with package("PIL.Image").open(path) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":
            raise ValueError(f"expected one picture, got {frames}; save a volume as .npy or .nii.gz")
        if picture.mode in ("LA", "RGB", "RGBA") and any(";16" in str(tile.args) for tile in picture.tile):
            raise ValueError("expected 16-bit grey or 8-bit colour, got 16-bit colour, of which Pillow reads 8 bits")
        yield picture


def _picture(path: Path, *, indices: bool) -> NDArray[Any]:
    """(C, H, W); of a palette's picture the colours, or the indices."""
    with _opened(path) as picture:
        if indices and picture.format in ("JPEG", "MPO"):
            raise ValueError("expected a mask that keeps its numbers, got JPEG, which changes them; save it as PNG")
        upright = package("PIL.ImageOps").exif_transpose(picture)
        array = np.asarray(upright.convert("RGB") if upright.mode == "P" and not indices else upright)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))
