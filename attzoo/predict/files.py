"""From files to files: masks and overlays of images and volumes, and pictures of where the network looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import maps
from ..contract import Array, brief
from ..data import VOLUMES, describe_image, ending, package, read_geometry, unread, write_mask
from ..files import usable_folder
from ..train.files import by_name, ignored_files
from . import picture
from .network import Network, check_options, segment
from .output import Output

FOLDERS: Final = ("masks", "overlays")


def predict_files(
    network: Network,
    source: str | Path,
    out: str | Path,
    *,
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    batch: int | None = None,
    overlays: bool = True,
    overwrite: bool = False,
    hear: Callable[[int, int], None] = lambda done, count: None,
) -> list[Path]:
    """Write what a network makes of an image, a volume or a folder of them; return the files.

    Of each, out/masks holds the class indices, of the image's size and under its name: of a picture a grey PNG, of a
    volume a file of its own kind, with its header; out/overlays holds a PNG to look at, which takes longer to draw than
    a small network needs: `overlays` leaves it out. What an earlier call made of the same image and nobody changed
    since is replaced, or removed where this one leaves it out.
    window, overlap, batch: as `predict`. overwrite: replace other files too, though never an input. hear: told how many
    are done, of how many.
    Raises OSError where there is no source, `out` is no folder, or a file may not be replaced, ValueError for options
    that do not fit; both before anything is written. ValueError, naming the file, for one that can't be read, has other
    channels or axes than the network takes, or no geometry; of a folder such files are passed over, and at the end
    Unfinished is raised with all of them.
    """
    if overlays:
        package("matplotlib")   # early, where it is absent
    check_options(network, window, overlap, batch)
    sources, out = _sources(Path(source)), Path(out)
    count = 1 + overlays
    for folder in FOLDERS[:count]:
        usable_folder(out / folder)
    output = Output(out, sources.values(), overwrite)
    spacings, failures = _heads(network, sources.values())
    failures |= _unread(Path(source))
    targets = {path: _targets(out, name, path) for name, path in sources.items() if path in spacings}
    for path, pair in targets.items():
        output.check(pair[:count], path)
    written: list[Path] = []
    for done, (path, pair) in enumerate(targets.items()):
        hear(done, len(sources))
        with _noted(failures, path):
            image = network.preparation.read(path)
            mask = segment(network, image, window=window, overlap=overlap, batch=batch)
            results = {pair[0]: _mask(mask, path)}
            if overlays:
                results[pair[1]] = picture.draw(image, mask, path.name, spacings[path])
        if path not in failures:
            output.write(results, path, without=pair[count:])
            written += pair[:count]
    output.finish()
    hear(len(sources), len(sources))
    if failures:
        count = len({*sources.values(), *failures})
        raise Unfinished(written, failures, count) if count > 1 else failures.popitem()[1]
    return written


class Unfinished(ValueError):
    """Files of a folder could not be segmented; the others were.

    written: the files that were written. failures: the error of each file that could not be segmented.
    """

    def __init__(self, written: Sequence[Path], failures: Mapping[Path, Exception], count: int) -> None:
        self.written, self.failures = list(written), dict(failures)
        first = brief(str(next(iter(self.failures.values()))))
        super().__init__(f"expected to segment {count} files, got errors in {len(self.failures)} of them: {first}")


def _heads(
    network: Network, sources: Iterable[Path]
) -> tuple[dict[Path, tuple[float, ...]], dict[Path, Exception]]:
    """By the heads of files, the spacing of those that the network takes, and what is wrong with the others."""
    spacings: dict[Path, tuple[float, ...]] = {}
    failures: dict[Path, Exception] = {}
    for path in sources:
        with _noted(failures, path):
            spacings[path] = _spacing(network, path)
    return spacings, failures


def _unread(source: Path) -> dict[Path, Exception]:
    """The errors for images and volumes in a folder whose formats are not read."""
    strays = ignored_files(source) if source.is_dir() else []
    return {path: ValueError(f"cannot read {path}: {fix}") for path in strays if (fix := unread(path))}


def _spacing(network: Network, path: Path) -> tuple[float, ...]:
    """The spacing that a file's head states, empty for none.

    Raises ValueError, naming the file, for one that can't be read or is none for the network.
    """
    head = describe_image(path)
    network.check_inputs(head.image_shape, str(path))
    network.accept_scale(head.image_dtype, str(path))
    geometry = read_geometry(path)
    return geometry.spacing if geometry else ()


@contextmanager
def _noted(failures: dict[Path, Exception], path: Path) -> Iterator[None]:
    """Note what is wrong with a file, and go on."""
    try:
        yield
    except (ValueError, OSError) as err:
        failures[path] = err


def _targets(out: Path, name: str, source: Path) -> tuple[Path, ...]:
    """The files of a mask and of its overlay."""
    kind = ending(source) if ending(source) in VOLUMES else ".png"
    masks, overlays = (out / folder for folder in FOLDERS)
    return masks / f"{name}{kind}", overlays / f"{name}.png"


def _mask(mask: NDArray[Any], source: Path) -> bytes:
    """The file of a mask: of a volume one of its kind with its header, else a PNG."""
    if ending(source) not in VOLUMES:
        return _png(mask)
    with TemporaryDirectory() as folder:
        write_mask(path := Path(folder) / f"mask{ending(source)}", mask, source)
        return path.read_bytes()


def maps_file(network: Network, source: str | Path, out: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write where a network looks in an image or a volume; return the files.

    out/NAME.png shows the coefficients of every gate and block, and out/NAME holds them, a .npy each, as
    `attzoo.attention_maps` gives them. overwrite: as `predict_files`.
    Raises OSError where there is no source, `out` is no folder or a file may not be replaced; ValueError, naming the
    file, for one that can't be read or is none for the network, where out/NAME holds arrays of other names, as another
    network leaves them, and as `attention_maps`.
    """
    package("matplotlib")   # early, where it is absent
    source, out = Path(source), Path(out)
    name = _stem(source)
    folder = usable_folder(out / (name if name.strip(".") else "_" * len(name)))   # "..", of ...png, is out's parent
    if not source.is_file():
        got = f"the folder {source}: `attzoo predict` takes folders" if source.is_dir() else f"no file {source}"
        raise FileNotFoundError(f"expected one image or volume, got {got}")
    output = Output(out, [source], overwrite)
    spacing = _spacing(network, source)
    image = network.preparation.read(source)
    with maps.attention_maps(network.model) as seen:
        network(network.preparation(image)[None])
    written = [out / f"{name}.png", *(folder / f"{safe}.npy" for safe in _safe(seen))]
    if others := sorted(set(folder.glob("*.npy")) - set(written)):
        raise ValueError(f"expected no arrays but this network's in {folder}, got {others[0].name}: remove them")
    output.check(written, source)
    drawn = maps.draw(image, seen, f"Where the network looks in {source.name}", spacing[: image.ndim - 1])
    output.write(dict(zip(written, [drawn, *map(_npy, seen.values())], strict=True)), source)
    output.finish()
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


def _safe(seen: Mapping[str, Array]) -> list[str]:
    """Names of files for paths of blocks: nothing in them but letters, digits and . _ -, none twice."""
    names: list[str] = []
    for path in seen:
        name = re.sub(r"[^A-Za-z0-9._-]|^\.", "_", path) or "model"
        while name.lower() in map(str.lower, names):   # some file systems take a for A
            name += "_"
        names.append(name)
    return names


def _npy(array: NDArray[Any]) -> bytes:
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _png(mask: NDArray[Any]) -> bytes:
    """Grey of 8 or 16 bits whose values are the classes, which every reader gives back."""
    file = BytesIO()
    package("PIL.Image").fromarray(mask).save(file, "PNG")
    return file.getvalue()
