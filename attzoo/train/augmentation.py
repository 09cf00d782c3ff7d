"""Random changes of images and masks in training, made by MONAI's transforms.

Intensities are changed in units of the standard deviation of an image, so images must be z-scored. Flips and the
changes below are drawn independently for each image; `PROBABILITY` is that of each change.
"""

from __future__ import annotations

from functools import cache
from math import radians
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..contract import Array
from .preparation import transforms

PROBABILITY: Final = 0.5
ANGLE: Final = 15.0      # degrees, the largest rotation in either direction; of volumes, about each axis
SCALE: Final = 0.15      # sizes are multiplied by a number from 1 - SCALE to 1 + SCALE
CONTRAST: Final = 0.25   # numbers are multiplied by a number from 1 - CONTRAST to 1 + CONTRAST
OFFSET: Final = 0.25     # a number from -OFFSET to OFFSET is added to all numbers of an image
NOISE: Final = 0.1       # the largest standard deviation of noise, which is added to each number


@cache
def random_changes(spatial_dims: int, flip: bool, augment: bool) -> Any:
    """Return a random transform of a dict with the keys "image" and "mask".

    Args:
        spatial_dims: 2 or 3.
        flip: whether to flip, pictures left to right, volumes along each axis.
        augment: whether to rotate and scale both, and to change the intensities of the image and add noise.
    """
    monai, keys = transforms(), ("image", "mask")
    axes = (1,) if spatial_dims == 2 else range(spatial_dims)
    changes = [monai.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in axes] if flip else []
    if augment:
        modes = {"mode": ("bilinear", "nearest"), "padding_mode": "border"}   # "zeros" would add class 0
        angles = [radians(ANGLE)] * (1 if spatial_dims == 2 else 3)
        changes += [
            monai.RandAffined(keys, prob=PROBABILITY, rotate_range=angles, scale_range=[SCALE] * spatial_dims, **modes),
            monai.RandScaleIntensityd("image", factors=CONTRAST, prob=PROBABILITY),
            monai.RandShiftIntensityd("image", offsets=OFFSET, prob=PROBABILITY),
            monai.RandGaussianNoised("image", prob=PROBABILITY, std=NOISE),
        ]
    return monai.Compose(changes)


def change(
    changes: Any, image: Array, mask: NDArray[np.int64], seed: tuple[int, ...]
) -> tuple[Array, NDArray[np.int64]]:
    """Return changed copies of an image (C, *S) and its mask (*S), which depend on the seed alone.

    changes: a transform that `random_changes` returned.
    """
    changes.set_random_state(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    sample = changes({"image": image, "mask": mask[None]})
    return np.array(sample["image"], np.float32), np.array(sample["mask"][0], np.int64)
