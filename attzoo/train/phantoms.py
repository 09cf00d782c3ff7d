"""Phantoms: a synthetic segmentation task to try things on, made of deformed ellipses; no patient is in it.

A picture is a caricature of a slice, or in 3-D a block, of an abdomen: a body with a spine, gas and bowel, a large
liver, two kidneys and a small pancreas, seen through a bias field and noise. Loops of bowel have the grey, the size and
the shape of the pancreas, and the spleen has the liver's grey: what something is shows in where it lies, not in how it
looks. Everything is drawn at random and follows from a seed.
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
COLORS: Final = (0, 0, 0, 178, 84, 60, 92, 138, 196, 240, 196, 72)   # RGB of each class, as a palette
FAT, FLESH, BOWEL, LIVER, VESSEL, KIDNEY, BONE = 0.16, 0.34, 0.49, 0.6, 0.68, 0.76, 0.97   # greys
NOISE: Final = 0.045   # its standard deviation
BIAS: Final = 0.25    # at most, along each axis, as a share of the grey
LONG: Final = 1e3     # radius along the body of what goes through all of it


class Phantoms:
    """The dataset of `count` phantoms, the same in every epoch.

    size: of each, in 2-D or 3-D. seed, start: phantom i is the (start + i)-th of its seed.
    Images are float32 of mean 0 and standard deviation 1, masks hold indices into CLASSES.
    Raises TypeError or ValueError for sizes and counts that are none.
    """

    channels = 1
    classes: int | None = len(CLASSES)

    def __init__(self, count: int, size: tuple[int, ...] = (64, 64), seed: int = 0, start: int = 0) -> None:
        self.count = contract.integer("count", count)
        self.size = tuple(contract.integer("size", side) for side in size)
        self.spatial_dims = contract.choice("the number of axes", len(self.size), (2, 3))
        self.seed, self.start = contract.integer("seed", seed, 0), contract.integer("start", start, 0)
        self._drawn: dict[int, tuple[Array, NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> tuple[Array, NDArray[np.int64]]:
        """Image float32 (1, *S) and mask int64 (*S) at (epoch, index); IndexError past the end."""
        index = key[1]
        if not 0 <= index < self.count:
            raise IndexError(f"expected an index from 0 to {self.count - 1}, got {index}")
        if index not in self._drawn:
            image, mask = draw(self.size, self.seed, self.start + index)
            self._drawn[index] = ((image - image.mean()) / (image.std() or 1))[None], mask
        image, mask = self._drawn[index]
        return image.copy(), mask.copy()

    def common_size(self) -> tuple[int, ...]:
        """The spatial size of every sample."""
        return self.size

    def arrays(self) -> tuple[Array, NDArray[np.int64]]:
        """All images (count, 1, *S) and masks (count, *S)."""
        images, masks = zip(*(self[0, index] for index in range(self.count)), strict=True)
        return np.stack(images), np.stack(masks)


def write(folder: str | Path, train: int = 32, valid: int = 8, size: tuple[int, ...] = (64, 64), seed: int = 0) -> None:
    """Write phantoms into folders train_images, train_labels, valid_images and valid_labels, made where missing.

    In 2-D pictures of 8 bits and masks with a palette, both PNG; in 3-D .npy. Files of these names are replaced.
    Raises as Phantoms, and OSError where the folder cannot be written.
    """
    parts = Phantoms(train, size, seed), Phantoms(valid, size, seed, start=train)
    for part, names in zip(parts, (CAMVID[:2], CAMVID[2:]), strict=True):
        images, masks = (Path(folder) / name for name in names)
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(exist_ok=True)
        for index in range(len(part)):
            image, mask = draw(part.size, seed, part.start + index)
            name = f"{index:04}{'.png' if part.spatial_dims == 2 else '.npy'}"
            write_file(images / name, _encoded(np.clip(image * 220, 0, 255).astype(np.uint8), palette=False))
            write_file(masks / name, _encoded(mask.astype(np.uint8), palette=True))


def _encoded(array: NDArray[np.uint8], *, palette: bool) -> bytes:
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
    """Phantom `index` of a seed: greys float32 (*S), about 0 to 1, and classes (*S)."""
    canvas = _Canvas(size, np.random.default_rng((seed, index)))
    _anatomy(canvas)
    return canvas.seen(), canvas.mask


class _Canvas:
    """Greys and classes, painted on in the coordinates of a body that fills -1 to 1, turned and off the middle."""

    def __init__(self, size: tuple[int, ...], random: np.random.Generator) -> None:
        self.random = random
        middles = [((np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1) for side in size]
        self.axes = np.meshgrid(*middles, indexing="ij", sparse=True)
        y, x = self.axes[-2] - random.uniform(-0.1, 0.1), self.axes[-1] - random.uniform(-0.1, 0.1)
        turn = random.uniform(-0.25, 0.25)
        self.y = (cos(turn) * y - sin(turn) * x) / random.uniform(0.84, 0.98)
        self.x = (sin(turn) * y + cos(turn) * x) / random.uniform(0.84, 0.98)
        self.z = self.axes[0] if len(size) == 3 else np.zeros((1, 1), np.float32)
        self.pixels = min(size[-2:]) / 2   # in a length of 1
        self.image = np.zeros(size, np.float32)
        self.mask = np.zeros(size, np.int64)

    def ellipse(
        self,
        grey: float,
        center: tuple[float, float],
        radii: tuple[float, float],
        label: int = 0,
        *,
        turn: float = 0.0,
        depth: float = LONG,
        wobble: float = 0.12,
    ) -> None:
        """Paint a deformed ellipse, in 3-D an ellipsoid with radius `depth` along the body, over what is there."""
        one, two, three, four = self.random.uniform(0, 2 * pi, 4).tolist()
        y, x, z = self.y - center[0], self.x - center[1], (self.z - self.random.uniform(-0.15, 0.15)) / depth
        v, u = (cos(turn) * y - sin(turn) * x) / radii[0], (sin(turn) * y + cos(turn) * x) / radii[1]
        v, u = (
            v + wobble * (np.sin(2 * (u + z) + one) + np.sin(4 * u + two) / 2),
            u + wobble * (np.sin(2 * (v + z) + three) + np.sin(4 * v + four) / 2),
        )
        radius = np.sqrt(v * v + u * u + z * z)
        cover = np.clip((1 - radius) * (0.4 * self.pixels * min(radii)) + 0.5, 0, 1)   # an edge is some pixels wide
        self.image += cover * (grey - self.image)
        self.mask[radius < 1] = label

    def seen(self) -> Array:
        """The greys through a bias field, with noise whose grain is larger than a pixel."""
        image: Array = self.image
        for axis in self.axes:
            image = image * (1 + self.random.uniform(0, BIAS) * np.cos(2 * axis + self.random.uniform(0, 2 * pi)))
        noise: Array = self.random.standard_normal(image.shape, dtype=np.float32)
        for i in range(image.ndim):
            noise = (noise + np.roll(noise, 1, i) / 2) / 1.25**0.5
        return image + NOISE * noise


def _anatomy(canvas: _Canvas) -> None:
    """A body from the skin inward; what is painted later lies in front."""
    random = canvas.random

    def near(y: float, x: float, spread: float = 0.05) -> tuple[float, float]:
        return y + random.uniform(-spread, spread), x + random.uniform(-spread, spread)

    def about(*lengths: float) -> Any:
        return tuple(length * random.uniform(0.85, 1.15) for length in lengths)

    canvas.ellipse(FAT, (0, 0), (0.88, 1.0), wobble=0.03)
    canvas.ellipse(FLESH, (0, 0), (0.78, 0.9), wobble=0.03)
    canvas.ellipse(LIVER, near(-0.12, 0.62), about(0.26, 0.16), turn=random.uniform(-0.5, 0.5), depth=0.8)   # spleen
    for place in random.permutation(6)[: random.integers(3, 6)]:   # bowel, all around where the pancreas is
        center = near(*((-0.5, -0.05), (-0.45, 0.33), (-0.2, 0.34), (0.2, -0.56), (0.14, 0.56), (-0.62, 0.15))[place])
        canvas.ellipse(BOWEL, center, about(0.11, 0.22), turn=random.uniform(-1.5, 1.5), depth=0.45)
    for _ in range(random.integers(0, 3)):
        canvas.ellipse(0.02, near(-0.5, 0.15, 0.2), about(0.08, 0.1), depth=0.3)   # gas
    canvas.ellipse(LIVER, near(-0.15, -0.46), about(0.42, 0.34), 1, turn=random.uniform(-0.3, 0.3), depth=0.9)
    for side in (-1, 1):
        turn = side * random.uniform(0.2, 0.7)
        canvas.ellipse(KIDNEY, near(0.36, 0.42 * side), about(0.2, 0.13), 2, turn=turn, depth=0.6)
    canvas.ellipse(BONE, near(0.55, 0, 0.03), about(0.17, 0.17), wobble=0.08)
    canvas.ellipse(VESSEL, near(0.28, 0.06, 0.03), about(0.07, 0.07), wobble=0.03)
    turn = random.uniform(-0.5, 0.5)
    canvas.ellipse(BOWEL, near(0.06, 0.06), about(0.11, 0.22), 3, turn=turn, depth=0.45)   # pancreas
