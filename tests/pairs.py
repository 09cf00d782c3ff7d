"""Arrays of every kind, and pairs of images and masks in files."""

from math import prod

import nibabel
import numpy as np
from PIL import Image

from attzoo.data import ending

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (6, 5, 4), dtype=np.uint8)
WORDS = RANDOM.integers(0, 2**16, (6, 5), dtype=np.uint16)
VOLUME = RANDOM.normal(size=(3, 4, 5, 2))
AFFINE = np.array([[0, 2.0, 0, 5], [3, 0, 0, -6], [0, 0, 1.5, 7], [0, 0, 0, 1]])


def save(path, array):
    """An array in the way of a file's ending, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending(path) == ".npy":
        np.save(path, array)
    elif ending(path) in (".nii", ".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    else:
        Image.fromarray(array).save(path)
    return path


def coordinates(*size):
    """An image whose channels are the places of its pixels' middles, from 0 to 1, one for each axis."""
    axes = [(np.arange(side, dtype=np.float32) + 0.5) / side for side in size]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def cells(places):
    """The class that a mask of quarters along each axis has at such places."""
    return sum((np.floor(places[i] * 4) * 4**i).astype(np.int64) for i in range(len(places)))


def place(folder, count, size=(8, 12)):
    """Pairs of coordinates, in pictures as the number of each pixel, and of cells."""
    pairs = [(folder / "images" / f"{i}.npy", folder / "masks" / f"{i}.npy") for i in range(count)]
    at = coordinates(*size)
    for image, mask in pairs:
        save(image, np.moveaxis(at, 0, -1) if len(size) == 3 else np.arange(prod(size)).reshape(size))
        save(mask, cells(at))
    return pairs
