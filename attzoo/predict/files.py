"""From files to files: masks and overlays of images and volumes, and pictures of where the network looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import maps
from ..contract import Array
from ..files import whole, write
from ..train.files import VOLUMES, by_name, ending, package, read_affine, read_image, read_shape
from . import picture
from .network import Network, segment


def predict_files(
    network: Network,
    source: str | Path,
    out: str | Path,
    *,
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    batch: int | None = None,
    hear: Callable[[int, int], None] = lambda done, count: None,
) -> list[Path]:
    """Write what a network makes of an image, a volume or a folder of them; return the files.

    Of each, out/masks holds the class indices, of the image's size and under its name: PNG of a picture, of a volume a
    file of its own kind, with its affine; out/overlays holds a PNG to look at. What was there is replaced.
    window, overlap, batch: as `predict`. hear: told how many are done, of how many.
    Raises OSError where there is no source, or `out` is no folder; ValueError, naming the file, for one that is none
    for the network, before anything is written, or cannot be read.
    """
    package("matplotlib")   # early, where it is absent
    sources, masks, overlays = _sources(Path(source)), _free(Path(out) / "masks"), _free(Path(out) / "overlays")
    for path in sources.values():
        network.accept(read_shape(path), str(path))
    written = []
    for done, (name, path) in enumerate(sources.items()):
        hear(done, len(sources))
        image = read_image(path)
        mask = segment(network, image, window=window, overlap=overlap, batch=batch)
        drawn = picture.draw(image, mask, path.name)
        masks.mkdir(parents=True, exist_ok=True)
        overlays.mkdir(exist_ok=True)
        target = masks / f"{name}{ending(path) if ending(path) in VOLUMES else '.png'}"
        _write_mask(target, mask, read_affine(path))
        write(overlays / f"{name}.png", drawn)
        written += [target, overlays / f"{name}.png"]
    hear(len(sources), len(sources))
    return written


def maps_file(network: Network, source: str | Path, out: str | Path) -> list[Path]:
    """Write where a network looks in an image or a volume; return the files.

    out/NAME.png shows the coefficients of every gate and block, and out/NAME holds them, a .npy each, as
    `attzoo.attention_maps` gives them. Those of the same names are replaced.
    Raises OSError where there is no source, or `out` is no folder; ValueError, naming the file, for one that cannot be
    read or is none for the network, where out/NAME holds arrays of other names, as another network leaves them, and as
    `attention_maps`.
    """
    package("matplotlib")   # early, where it is absent
    source = Path(source)
    name = _stem(source)
    folder = _free(Path(out) / name)
    if not source.is_file():
        raise FileNotFoundError(f"expected an image or a volume, got no file {source}")
    image = read_image(source)
    network.accept(image.shape, str(source))
    with maps.attention_maps(network.model) as seen:
        network(network.preparation(image)[None])
    written = [folder.parent / f"{name}.png", *(folder / f"{safe}.npy" for safe in _safe(seen))]
    if others := sorted(set(folder.glob("*.npy")) - set(written)):
        raise ValueError(f"expected no arrays but this network's in {folder}, got {others[0].name}: remove them")
    drawn = maps.draw(image, seen, f"Where the network looks in {source.name}")
    folder.mkdir(parents=True, exist_ok=True)
    write(written[0], drawn)
    for path, array in zip(written[1:], seen.values(), strict=True):
        write(path, _npy(array))
    return written


def _sources(source: Path) -> dict[str, Path]:
    """Images by name without ending: one, or those of a folder."""
    if source.is_dir():
        return by_name(source)
    if not source.exists():
        raise FileNotFoundError(f"expected an image, a volume or a folder of them, got nothing at {source}")
    return {_stem(source): source}


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(ending(path))]


def _free(path: Path) -> Path:
    """`path`, which is a folder or can be made one. Raises NotADirectoryError where a file is in the way."""
    for each in (path, *path.parents):
        if each.exists() and not each.is_dir():
            raise NotADirectoryError(f"out must be a folder, got a file: {each}")
    return path


def _safe(seen: Mapping[str, Array]) -> list[str]:
    """Names of files for paths of blocks: nothing in them but letters, digits and . _ -, none twice."""
    names: list[str] = []
    for path in seen:
        name = re.sub(r"[^A-Za-z0-9._-]|^\.", "_", path) or "model"
        while name.lower() in map(str.lower, names):   # some file systems take a for A
            name += "_"
        names.append(name)
    return names


def _write_mask(path: Path, mask: NDArray[Any], affine: Array | None) -> None:
    if affine is not None:
        nibabel = package("nibabel")
        with whole(path) as temporary:
            nibabel.save(nibabel.Nifti1Image(mask, affine), temporary)
        return
    write(path, _npy(mask) if path.suffix == ".npy" else _png(mask))


def _npy(array: NDArray[Any]) -> bytes:
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _png(mask: NDArray[Any]) -> bytes:
    file = BytesIO()
    image = package("PIL.Image").fromarray(mask)
    if mask.dtype == np.uint8:   # indices still, but a viewer shows them in the overlay's colours
        colors = picture.palette(int(mask.max(initial=0)) + 1)
        colors[0] = 0
        image.putpalette((255 * colors).astype(np.uint8).tobytes())
    image.save(file, "PNG")
    return file.getvalue()
