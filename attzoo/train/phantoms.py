"""Phantoms: a synthetic segmentation task of deformed ellipses, without data of patients.

An image shows a simplified slice, or in 3-D a block, of an abdomen with a spine, gas, bowel, a large liver, two kidneys
and a small pancreas, with a bias field and noise. Loops of bowel have the grey value, size and shape of the pancreas,
and the spleen has the grey value of the liver, so a network has to use positions to tell them apart. Everything is
random and depends on a seed alone.
"""

from __future__ import annotations

from io import BytesIO
from math import cos, pi, sin
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import contract
from ..contract import Array
from ..data import package
from ..files import write as write_file
from .files import CAMVID

CLASSES: Final = ("background", "liver", "kidney", "pancreas")
COLORS: Final = (0, 0, 0, 178, 84, 60, 92, 138, 196, 240, 196, 72)   # palette: RGB of each class
FAT, FLESH, BOWEL, LIVER, VESSEL, KIDNEY, BONE = 0.16, 0.34, 0.49, 0.6, 0.68, 0.76, 0.97   # grey values
NOISE: Final = 0.045   # standard deviation
MAX_BIAS: Final = 0.25   # along each axis, as a share of the grey value
ENDLESS: Final = 1e3     # radius along the body of an ellipse that is the same in all slices


class Phantoms:
    """A dataset of phantoms, the same in every epoch.

    Images are float32 with mean 0 and standard deviation 1, masks hold indices into CLASSES.

    Args:
        count: the number of phantoms.
        size: the spatial size, in 2-D or 3-D.
        seed: seed of the phantoms.
        start: the index of the first phantom among those of the seed.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is too small, or `size` has not 2 or 3 numbers.
    """

    channels = 1
    classes: int | None = len(CLASSES)

    def __init__(self, count: int, size: tuple[int, ...] = (64, 64), seed: int = 0, start: int = 0) -> None:
        self.count = contract.integer("count", count)
        self.size = tuple(contract.integer("size", side) for side in size)
        self.spatial_dims = contract.choice("the number of axes in size", len(self.size), (2, 3))
        self.seed, self.start = contract.integer("seed", seed, 0), contract.integer("start", start, 0)
        self._cache: dict[int, tuple[Array, NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        """Return the number of phantoms."""
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> tuple[Array, NDArray[np.int64]]:
        """Return image float32 (1, *S) and mask int64 (*S) at (epoch, index). Raises IndexError past the end."""
        index = key[1]
        if not 0 <= index < self.count:
            raise IndexError(f"expected an index from 0 to {self.count - 1}, got {index}")
        if index not in self._cache:
            image, mask = draw(self.size, self.seed, self.start + index)
            self._cache[index] = ((image - image.mean()) / (image.std() or 1))[None], mask
        image, mask = self._cache[index]
        return image.copy(), mask.copy()

    def common_size(self) -> tuple[int, ...]:
        """Return the spatial size of every sample."""
        return self.size

    def arrays(self) -> tuple[Array, NDArray[np.int64]]:
        """Return all images, float32 (count, 1, *S), and masks, int64 (count, *S)."""
        images, masks = zip(*(self[0, index] for index in range(self.count)), strict=True)
        return np.stack(images), np.stack(masks)


def write(folder: str | Path, train: int = 32, valid: int = 8, size: tuple[int, ...] = (64, 64), seed: int = 0) -> None:
    """Write phantoms into the folders train_images, train_labels, valid_images and valid_labels.

    In 2-D, images are PNG with 8 bits and masks PNG with a palette; in 3-D both are .npy. Files of these names are
    replaced.

    Args:
        folder: the folder that contains or will contain these folders.
        train: the number of phantoms to train on.
        valid: the number of phantoms to validate on.
        size: the spatial size, in 2-D or 3-D.
        seed: seed of the phantoms.

    Raises:
        TypeError, ValueError: for the reasons of `Phantoms`.
        OSError: the folder cannot be written.
    """
    parts = Phantoms(train, size, seed), Phantoms(valid, size, seed, start=train)
    for part, names in zip(parts, (CAMVID[:2], CAMVID[2:]), strict=True):
        images, masks = (Path(folder) / name for name in names)
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(exist_ok=True)
        for index in range(len(part)):
            image, mask = draw(part.size, seed, part.start + index)
            name = f"{index:04}{'.png' if part.spatial_dims == 2 else '.npy'}"
            write_file(images / name, _encode(np.clip(image * 220, 0, 255).astype(np.uint8), palette=False))
            write_file(masks / name, _encode(mask.astype(np.uint8), palette=True))


def _encode(array: NDArray[np.uint8], *, palette: bool) -> bytes:
    """Return the bytes of an array (H, W) as PNG, with the palette COLORS if `palette`, or (D, H, W) as .npy."""
    data = BytesIO()
    if array.ndim == 3:
        np.save(data, array)
        return data.getvalue()
    picture = package("PIL.Image").fromarray(array)
    if palette:
        picture.putpalette(COLORS)
    picture.save(data, format="PNG")
    return data.getvalue()


# ---- drawing ---------------------------------------------------------------------------------------


def draw(size: tuple[int, ...], seed: int, index: int) -> tuple[Array, NDArray[np.int64]]:
    """Return phantom `index` of a seed: grey values float32 (*S), about 0 to 1, and classes int64 (*S)."""
    canvas = _Canvas(size, np.random.default_rng((seed, index)))
    _draw_anatomy(canvas)
    return canvas.degraded(), canvas.mask


class _Canvas:
    """Grey values and classes, drawn in coordinates of the body: -1 to 1, rotated and shifted at random."""

    def __init__(self, size: tuple[int, ...], random: np.random.Generator) -> None:
        self.random = random
        centers = [((np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1) for side in size]   # of pixels
        self.axes = np.meshgrid(*centers, indexing="ij", sparse=True)
        y, x = self.axes[-2] - random.uniform(-0.1, 0.1), self.axes[-1] - random.uniform(-0.1, 0.1)
        angle = random.uniform(-0.25, 0.25)
        self.y = (cos(angle) * y - sin(angle) * x) / random.uniform(0.84, 0.98)
        self.x = (sin(angle) * y + cos(angle) * x) / random.uniform(0.84, 0.98)
        self.z = self.axes[0] if len(size) == 3 else np.zeros((1, 1), np.float32)
        self.pixels = min(size[-2:]) / 2   # pixels per unit of length
        self.image = np.zeros(size, np.float32)
        self.mask = np.zeros(size, np.int64)

    def ellipse(
        self,
        grey: float,
        center: tuple[float, float],
        radii: tuple[float, float],
        label: int = 0,
        *,
        angle: float = 0.0,
        depth: float = ENDLESS,
        deformation: float = 0.12,
    ) -> None:
        """Draw a deformed ellipse, in 3-D an ellipsoid, in place over everything drawn so far.

        Lengths and positions are in coordinates of the body.

        Args:
            grey: the grey value.
            center: (y, x).
            radii: (y, x), before the rotation.
            label: the class.
            angle: the angle of the rotation in the plane of y and x, in radians.
            depth: the radius along the body, in 3-D.
            deformation: the amplitude of the deformation, as a share of the radii.
        """
        phases = self.random.uniform(0, 2 * pi, 4).tolist()
        y, x, z = self.y - center[0], self.x - center[1], (self.z - self.random.uniform(-0.15, 0.15)) / depth
        v, long_axis = (cos(angle) * y - sin(angle) * x) / radii[0], (sin(angle) * y + cos(angle) * x) / radii[1]
        v, long_axis = (
            v + deformation * (np.sin(2 * (long_axis + z) + phases[0]) + np.sin(4 * long_axis + phases[1]) / 2),
            long_axis + deformation * (np.sin(2 * (v + z) + phases[2]) + np.sin(4 * v + phases[3]) / 2),
        )
        radius = np.sqrt(v * v + long_axis * long_axis + z * z)
        coverage = np.clip((1 - radius) * (0.4 * self.pixels * min(radii)) + 0.5, 0, 1)   # edges are some pixels wide
        self.image += coverage * (grey - self.image)
        self.mask[radius < 1] = label

    def degraded(self) -> Array:
        """Return a copy of the grey values with a bias field, and with noise that is correlated between pixels."""
        image: Array = self.image
        for axis in self.axes:
            image = image * (1 + self.random.uniform(0, MAX_BIAS) * np.cos(2 * axis + self.random.uniform(0, 2 * pi)))
        noise: Array = self.random.standard_normal(image.shape, dtype=np.float32)
        for i in range(image.ndim):
            noise = (noise + np.roll(noise, 1, i) / 2) / 1.25**0.5
        return image + NOISE * noise


def _draw_anatomy(canvas: _Canvas) -> None:
    """Draw an abdomen on the canvas, in place. Later organs cover earlier ones."""
    random = canvas.random

    def random_position(y: float, x: float, spread: float = 0.05) -> tuple[float, float]:
        """Return a random position (y, x), each at most `spread` from the given one."""
        return y + random.uniform(-spread, spread), x + random.uniform(-spread, spread)

    def random_radii(*lengths: float) -> Any:
        """Return a tuple of the lengths, each multiplied by a random factor from 0.85 to 1.15."""
        return tuple(length * random.uniform(0.85, 1.15) for length in lengths)

    canvas.ellipse(FAT, (0, 0), (0.88, 1.0), deformation=0.03)
    canvas.ellipse(FLESH, (0, 0), (0.78, 0.9), deformation=0.03)
    canvas.ellipse(
        LIVER, random_position(-0.12, 0.62), random_radii(0.26, 0.16), angle=random.uniform(-0.5, 0.5), depth=0.8
    )   # spleen
    loops = (-0.5, -0.05), (-0.45, 0.33), (-0.2, 0.34), (0.2, -0.56), (0.14, 0.56), (-0.62, 0.15)   # of the bowel
    for i in random.permutation(6)[: random.integers(3, 6)]:
        center = random_position(*loops[i])
        canvas.ellipse(BOWEL, center, random_radii(0.11, 0.22), angle=random.uniform(-1.5, 1.5), depth=0.45)
    for _ in range(random.integers(0, 3)):
        canvas.ellipse(0.02, random_position(-0.5, 0.15, 0.2), random_radii(0.08, 0.1), depth=0.3)   # gas
    canvas.ellipse(
        LIVER, random_position(-0.15, -0.46), random_radii(0.42, 0.34), 1, angle=random.uniform(-0.3, 0.3), depth=0.9
    )
    for side in (-1, 1):
        angle = side * random.uniform(0.2, 0.7)
        canvas.ellipse(KIDNEY, random_position(0.36, 0.42 * side), random_radii(0.2, 0.13), 2, angle=angle, depth=0.6)
    canvas.ellipse(BONE, random_position(0.55, 0, 0.03), random_radii(0.17, 0.17), deformation=0.08)
    canvas.ellipse(VESSEL, random_position(0.28, 0.06, 0.03), random_radii(0.07, 0.07), deformation=0.03)
    angle = random.uniform(-0.5, 0.5)
    # pancreas
    canvas.ellipse(BOWEL, random_position(0.06, 0.06), random_radii(0.11, 0.22), 3, angle=angle, depth=0.45)
