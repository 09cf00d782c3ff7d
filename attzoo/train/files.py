"""Find the images in a folder and the mask of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from unicodedata import normalize

import numpy as np

from ..data import ending, first_files, has_known_ending, unsupported_format
from ..data.channels import NUMBER
from .folds import validation_indices

SPLIT: Final = ("images", "masks")
CAMVID: Final = ("train_images", "train_labels", "valid_images", "valid_labels")

Pair = tuple[Path, Path]   # an image and its mask


def find(
    folder: str | Path,
    fraction: float = 0.2,
    seed: int = 0,
    fold: str | None = None,
    channel_files: bool = False,
) -> tuple[list[Pair], list[Pair]]:
    """Find pairs of images and masks to train on and to validate on.

    An image and its mask have the same name except for the extension. Hidden files, and files whose extension is not
    that of an image or volume, are ignored.

    Args:
        folder: contains either the folders train_images, train_labels, valid_images and valid_labels, or the folders
            images and masks.
        fraction: the share of pairs to validate on, in (0, 1), if the folder contains images and masks. At least one
            pair is for validation and at least one for training.
        seed: seed of the random choice of these pairs.
        fold: "i/n" to validate on fold i of n, counted from 1, instead of a fraction; see `folds`.
        channel_files: whether each channel of an image is a file of its own: NAME_0000, NAME_0001 and so on for the
            mask NAME. A pair then has the first of them.

    Returns:
        The pairs to train on and those to validate on, each sorted by name.

    Raises:
        ValueError: the folder has none or both of these, an image has no mask or a mask no image, there are fewer than
            two pairs to split, or a format cannot be read. The message has the path.
        OSError: if a folder cannot be read.
    """
    folder = Path(folder)
    subfolders = {path.name for path in folder.iterdir() if path.is_dir()}
    camvid_folders, split_folders = (subfolders & set(names) for names in (CAMVID, SPLIT))
    if bool(camvid_folders) == bool(split_folders):
        expected = f"{', '.join(CAMVID[:-1])} and {CAMVID[-1]}, or only {' and '.join(SPLIT)}"
        got = f"{_join(sorted(subfolders)) or 'no folder'}: rename or move the folders"
        raise ValueError(f"expected folders {expected} in {folder}, got {got}")
    if camvid_folders:
        if fold is not None:
            got = f"the folders {', '.join(CAMVID)}, which declare the images to validate on: leave out --fold"
            raise ValueError(f"expected the folders {' and '.join(SPLIT)} in {folder} to divide into folds, got {got}")
        return _pairs(folder, *CAMVID[:2], channel_files), _pairs(folder, *CAMVID[2:], channel_files)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be greater than 0 and less than 1, got {fraction}")
    pairs = _pairs(folder, *SPLIT, channel_files)
    if len(pairs) < 2:
        got = f"{len(pairs)}: add images and masks"
        raise ValueError(f"expected at least two images in {folder / SPLIT[0]}, one to validate on, got {got}")
    if fold is None:
        count = max(1, min(round(fraction * len(pairs)), len(pairs) - 1))
        chosen = set(np.random.default_rng(seed).permutation(len(pairs))[:count].tolist())
    else:
        chosen = set(validation_indices(len(pairs), fold, seed))
    return [pair for i, pair in enumerate(pairs) if i not in chosen], [pairs[i] for i in sorted(chosen)]


def _pairs(folder: Path, images: str, masks: str, channel_files: bool) -> list[Pair]:
    """Return the pairs of an image in one subfolder and the mask of the same name in the other, sorted by name.

    Raises ValueError if an image has no mask or a mask has no image, and the errors of `check_formats`,
    `paths_by_name` and, with `channel_files`, `first_files`.
    """
    for subfolder in (folder / images, folder / masks):
        check_formats(subfolder)
    image_paths = paths_by_name(folder / images)
    if channel_files:
        image_paths = first_files(image_paths)
    mask_paths = _match_unicode(image_paths, paths_by_name(folder / masks))
    if unpaired := [path for name, path in image_paths.items() if name not in mask_paths]:
        got = _missing_text(unpaired, folder / masks)
        if not channel_files and all(NUMBER.sub("", name) in mask_paths for name in image_paths):
            got += "; or set --channel-files if NAME_0000, NAME_0001, ... are the channels of one image"
        raise ValueError(f"expected a mask in {folder / masks} for every image, got {got}")
    if unpaired := [path for name, path in mask_paths.items() if name not in image_paths]:
        got = _missing_text(unpaired, folder / images)
        raise ValueError(f"expected an image in {folder / images} for every mask, got {got}")
    return [(path, mask_paths[name]) for name, path in image_paths.items()]


def _missing_text(unpaired: Sequence[Path], folder: Path) -> str:
    """Return the text "none for ..." for paths without a file of the same name in `folder`, and the remedy.

    The text lists files of these names in `folder` that are ignored because of their extension.
    """
    stems = {path.name[: len(path.name) - len(ending(path))] for path in unpaired}
    ignored = [path for path in ignored_files(folder) if path.stem in stems] if folder.is_dir() else []
    if ignored:
        fix = "save it in a supported format"
        return f"none for {_join(unpaired)}; {_join(ignored)} ignored because of the extension: {fix}"
    return f"none for {_join(unpaired)}: give each image and its mask the same name"


def check_formats(folder: Path) -> None:
    """Raise ValueError, with the path, if a folder has an image or volume in a format that cannot be read."""
    paths = ignored_files(folder) if folder.is_dir() else []
    problems = [(path, fix) for path in paths if (fix := unsupported_format(path))]
    if problems:
        path, fix = problems[0]
        more_text = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(f"expected images, masks or volumes in supported formats, got {path}{more_text}: {fix}")


def _match_unicode(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, Path]:
    """Return name -> mask, with the names of the images where both differ only in the Unicode form of letters.

    macOS writes é as two characters, e and an accent; other systems write one character. Masks without an
    image keep their names.
    """
    image_names = {to_nfc(name): name for name in images if name not in masks}
    return {name if name in images else image_names.get(to_nfc(name), name): path for name, path in masks.items()}


def to_nfc(name: str) -> str:
    """Return a name in Unicode normalization form C, so that equal names compare equal."""
    return normalize("NFC", name)


def paths_by_name(folder: Path) -> dict[str, Path]:
    """Return name without extension -> path for the images, masks or volumes of a folder, sorted by name.

    Hidden files and those of `ignored_files` are left out.

    Raises:
        ValueError: there is no such file, two files have one name, the folder has subfolders, or it does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder {folder}, got no folder: create it, or set another --data")
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (to_nfc(path.name), path.name)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            raise ValueError(f"expected files only in {folder}, got the folder {path}: move it elsewhere")
        if not has_known_ending(path):
            continue
        name = path.name[: len(path.name) - len(ending(path))]
        if name in paths:
            got = f"{paths[name]} and {path.name}: move or rename one"
            raise ValueError(f"expected one file for each name without extension, got {got}")
        paths[name] = path
    if not paths:
        check_formats(folder)
        got = f"only {_join(ignored)}" if (ignored := ignored_files(folder)) else "no file"
        raise ValueError(f"expected images, masks or volumes in {folder}, got {got}: add files in a supported format")
    return paths


def ignored_files(folder: Path) -> list[Path]:
    """Return the sorted files of a folder, except hidden ones, whose extension is not that of an image or volume."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not (path.name.startswith(".") or path.is_dir() or has_known_ending(path))
    ]


def _join(items: Sequence[Any]) -> str:
    """Return a text of the first three items and the number of further items, "" for no items."""
    more_text = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more_text
