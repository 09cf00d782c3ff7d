"""Which files of a folder are images, and which masks go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from unicodedata import normalize

import numpy as np

from ..data import ending, has_known_ending, unread

SPLIT: Final = ("images", "masks")
CAMVID: Final = ("train_images", "train_labels", "valid_images", "valid_labels")

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


def _pairs(folder: Path, images: str, masks: str) -> list[Pair]:
    """Each image of a folder with the mask of the same name."""
    for part in (folder / images, folder / masks):
        check_formats(part)
    found, labels = by_name(folder / images), by_name(folder / masks)
    labels = _spelled_as(found, labels)
    if lost := [path for name, path in found.items() if name not in labels]:
        raise ValueError(f"expected a mask in {folder / masks} for every image, got {_none(lost, folder / masks)}")
    if lost := [path for name, path in labels.items() if name not in found]:
        raise ValueError(f"expected an image in {folder / images} for every mask, got {_none(lost, folder / images)}")
    return [(path, labels[name]) for name, path in found.items()]


def _none(lost: Sequence[Path], folder: Path) -> str:
    """In words, that a folder has no file that goes with these, and which of their names it has in other formats."""
    stems = {path.name[: len(path.name) - len(ending(path))] for path in lost}
    others = [path for path in ignored_files(folder) if path.stem in stems] if folder.is_dir() else []
    fix = f"; {_some(others)} passed over, for the ending" if others else ": give an image and its mask one name"
    return f"none for {_some(lost)}{fix}"


def check_formats(folder: Path) -> None:
    """Raise ValueError, naming it, for an image or volume of a folder in a format that is not read."""
    others = [(path, fix) for path in ignored_files(folder) if (fix := unread(path))] if folder.is_dir() else []
    if others:
        path, fix = others[0]
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(f"expected images, masks or volumes in formats that are read, got {path}{more}: {fix}")


def _spelled_as(found: Mapping[str, Path], labels: Mapping[str, Path]) -> dict[str, Path]:
    """Masks under the names of the images, where these differ only in how Unicode composes letters such as é.

    macOS and archives made there write e and an accent where other systems write one character.
    """
    spelling = {to_nfc(name): name for name in found if name not in labels}
    return {name if name in found else spelling.get(to_nfc(name), name): path for name, path in labels.items()}


def to_nfc(name: str) -> str:
    """A name in the one spelling of accented letters by which names are compared."""
    return normalize("NFC", name)


def by_name(folder: Path) -> dict[str, Path]:
    """The images, masks or volumes of a folder by name without ending, sorted; ValueError unless there are any.

    Hidden files are passed over, and files whose names end like none of these, which `passed_over` lists.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder {folder}, got none")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (to_nfc(path.name), path.name)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            raise ValueError(f"expected files only in {folder}, got the folder {path}")
        if not has_known_ending(path):
            continue
        name = path.name[: len(path.name) - len(ending(path))]
        if name in found:
            raise ValueError(f"expected one file for each name, got {found[name]} and {path.name}: move or rename one")
        found[name] = path
    if not found:
        check_formats(folder)
        got = f"only {_some(others)}" if (others := ignored_files(folder)) else "none"
        raise ValueError(f"expected images, masks or volumes in {folder}, got {got}")
    return found


def ignored_files(folder: Path) -> list[Path]:
    """The files of a folder that `by_name` leaves out for the ending of their name, sorted."""
    return [p for p in sorted(folder.iterdir()) if not (p.name.startswith(".") or p.is_dir() or has_known_ending(p))]


def _some(things: Sequence[Any]) -> str:
    """A few of many, as text."""
    more = f" and {len(things) - 3} more" if len(things) > 3 else ""
    return ", ".join(map(str, things[:3])) + more
