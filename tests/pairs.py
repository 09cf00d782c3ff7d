"""Arrays for tests of reading files, and pairs of images and masks in files."""

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


def write_array(path, array):
    """Write an array in the format of the file's ending, create its folder if needed, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending(path) == ".npy":
        np.save(path, array)
    elif ending(path) in (".nii", ".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    else:
        Image.fromarray(array).save(path)
    return path


def coordinates(*size):
    """Return an image with the coordinates of its pixels' centers in [0, 1], a channel for each axis."""
    axes = [(np.arange(side, dtype=np.float32) + 0.5) / side for side in size]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def cell_mask(coordinates):
    """Return the index of the cell of each pixel, in a grid of 4 cells along each axis, as a mask of classes."""
    return sum((np.floor(coordinates[i] * 4) * 4**i).astype(np.int64) for i in range(len(coordinates)))


def write_pairs(folder, count, size=(8, 12)):
    """Write `count` pairs of an image and a mask of cells, and return their files.

    A 3-D image has the pixels' coordinates as channels; a 2-D image has each pixel's number.
    """
    pairs = [(folder / "images" / f"{i}.npy", folder / "masks" / f"{i}.npy") for i in range(count)]
    centers = coordinates(*size)
    for image, mask in pairs:
        write_array(image, np.moveaxis(centers, 0, -1) if len(size) == 3 else np.arange(prod(size)).reshape(size))
        write_array(mask, cell_mask(centers))
    return pairs
