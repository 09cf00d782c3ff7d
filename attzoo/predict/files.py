"""From files to files: masks and overlays of images and volumes, and pictures of where the network looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import maps
from ..contract import Array, brief
from ..data import VOLUMES, ending, package, read_geometry, read_shape, write_mask
from ..files import remove_stale, usable_folder, write
from ..train.files import by_name
from . import picture
from .network import Network, segment
from .output import Output


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
    a small network needs: `overlays` leaves it out. What an earlier call wrote and nobody changed since is replaced.
    window, overlap, batch: as `predict`. overwrite: replace other files too, though never an input. hear: told how many
    are done, of how many.
    Raises OSError where there is no source, `out` is no folder, or a file may not be replaced; ValueError, naming the
    file, for one that is none for the network; both before anything is written. Of a folder, files that can't be read
    are passed over, and at the end Unfinished is raised with all of them.
    """
    if overlays:
        package("matplotlib")   # early, where it is absent
    sources, out = _sources(Path(source)), Path(out)
    kinds = ("masks", "overlays") if overlays else ("masks",)
    for folder in kinds:
        usable_folder(out / folder)
        remove_stale(out / folder)
    output = Output(out, sources.values(), overwrite)
    failures = _unreadable(network, sources.values())
    targets = {path: _targets(out, name, path)[: len(kinds)] for name, path in sources.items()}
    output.check(path for pair in targets.values() for path in pair)
    for done, path in enumerate(path for path in sources.values() if path not in failures):
        hear(done, len(sources))
        with _noted(failures, path):
            image = network.preparation.read(path)
            mask = segment(network, image, window=window, overlap=overlap, batch=batch)
        if path not in failures:
            _write_results(targets[path], path, image, mask)
            for target in targets[path]:
                output.note(target)
    hear(len(sources), len(sources))
    written = [target for path in sources.values() if path not in failures for target in targets[path]]
    if failures:
        raise Unfinished(written, failures, len(sources)) if len(sources) > 1 else failures.popitem()[1]
    return written


class Unfinished(ValueError):
    """Files of a folder could not be segmented; the others were.

    written: the files that were written. failures: the error of each file that could not be segmented.
    """

    def __init__(self, written: Sequence[Path], failures: Mapping[Path, Exception], count: int) -> None:
        self.written, self.failures = list(written), dict(failures)
        first = brief(str(next(iter(self.failures.values()))))
        super().__init__(f"expected to segment {count} files, got errors in {len(self.failures)} of them: {first}")


def _unreadable(network: Network, sources: Iterable[Path]) -> dict[Path, Exception]:
    """The errors of files whose head can't be read. Raises ValueError for one that is none for the network."""
    failures: dict[Path, Exception] = {}
    for path in sources:
        with _noted(failures, path):
            shape = read_shape(path)
        if path not in failures:
            network.accept(shape, str(path))
    return failures


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
    return out / "masks" / f"{name}{kind}", out / "overlays" / f"{name}.png"


def _write_results(targets: Sequence[Path], source: Path, image: NDArray[Any], mask: NDArray[Any]) -> None:
    """The mask of an image, and where it has one its overlay, drawn first."""
    geometry = read_geometry(source)
    drawn = [picture.draw(image, mask, source.name, geometry.spacing if geometry else ()) for _ in targets[1:]]
    for path in targets:
        path.parent.mkdir(parents=True, exist_ok=True)
    if ending(targets[0]) in VOLUMES:
        write_mask(targets[0], mask, source)
    else:
        write(targets[0], _png(mask), tidy=False)   # the folder was tidied before the first file
    for path, content in zip(targets[1:], drawn, strict=True):
        write(path, content, tidy=False)


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
    folder = usable_folder(out / name)
    if not source.is_file():
        got = f"the folder {source}: `attzoo predict` takes folders" if source.is_dir() else f"no file {source}"
        raise FileNotFoundError(f"expected one image or volume, got {got}")
    output = Output(out, [source], overwrite)
    network.accept(read_shape(source), str(source))
    image = network.preparation.read(source)
    with maps.attention_maps(network.model) as seen:
        network(network.preparation(image)[None])
    written = [out / f"{name}.png", *(folder / f"{safe}.npy" for safe in _safe(seen))]
    if others := sorted(set(folder.glob("*.npy")) - set(written)):
        raise ValueError(f"expected no arrays but this network's in {folder}, got {others[0].name}: remove them")
    output.check(written)
    geometry = read_geometry(source)
    title = f"Where the network looks in {source.name}"
    drawn = maps.draw(image, seen, title, geometry.spacing[: image.ndim - 1] if geometry else ())
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in zip(written, [drawn, *map(_npy, seen.values())], strict=True):
        write(path, data)
        output.note(path)
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
