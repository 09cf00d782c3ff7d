"""Predict files: read images and volumes, and write masks, overlays (masks drawn over images) and coefficients."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import maps
from ..contract import Array, is_out_of_memory, shorten
from ..data import VOLUMES, adding_path, ending, first_files, package, read_geometry, unsupported_format, write_mask
from ..data.channels import FIRST
from ..files import usable_folder
from ..train.files import ignored_files, paths_by_name
from . import picture
from .network import Network, check_options, segment
from .output import Output

MASKS: Final = "masks"
OVERLAYS: Final = "overlays"


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
    on_progress: Callable[[int, int], None] = lambda finished_count, count: None,
) -> list[Path]:
    """Predict the mask of an image, a volume or each file of a folder, and write it to a file. Return the new files.

    out/masks gets a mask for each input: class indices, with the name and the spatial size of the input. The mask of a
    picture is a grey PNG; the mask of a volume has the format and the header of the volume. out/overlays gets a PNG of
    each input with its mask drawn over it. Results of an earlier call for the same input are replaced, or removed if
    this call does not write them, unless the user has changed these files.

    Args:
        network: the network, from `open_network`.
        source: a file, or a folder of files.
        out: the output folder; it is created if needed.
        window: the spatial size of a window in pixels, or None, as in `predict`.
        overlap: the fraction of a window that the next one overlaps, as in `predict`.
        batch: the number of windows in a batch, as in `predict`.
        overlays: whether to draw the overlays, which can take longer than the prediction.
        overwrite: whether to replace files that attzoo did not write; inputs are never replaced.
        on_progress: a function that is called with the number of finished inputs and the number of all inputs.

    Returns:
        The paths of the written files.

    Raises:
        OSError: if `source` does not exist, `out` is not a folder, or a file may not be replaced. Nothing is written.
        TypeError: if an option has another type; nothing is written.
        ValueError: if an option is invalid; nothing is written. If the only input cannot be read, has another number
            of channels or spatial axes than the network takes, has an invalid geometry, or is too large for the memory;
            the message names the file.
        ModuleNotFoundError: if `overlays` is set and matplotlib is not installed.
        Unfinished: if inputs of a folder of several files have such errors. The masks of the others are written.
    """
    if overlays:
        package("matplotlib")   # raises before the prediction if it is not installed
    check_options(network, window, overlap, batch)
    sources, out = _sources(network, Path(source)), Path(out)
    for folder in (MASKS, OVERLAYS) if overlays else (MASKS,):
        usable_folder(out / folder)
    inputs = [file for path in sources.values() for file in network.preparation.files(path)]
    output = Output(out, inputs, overwrite)
    spacings, failures = _check_files(network, sources.values())
    failures |= _unsupported(Path(source))
    targets = {path: _targets(out, name, path, overlays) for name, path in sources.items() if path in spacings}
    for path, files in targets.items():
        output.check(files.written, path)
    written: list[Path] = []
    for finished_count, (path, files) in enumerate(targets.items()):
        on_progress(finished_count, len(sources))
        with _collecting(failures, path):
            image = network.preparation.read(path)
            mask = segment(network, image, window=window, overlap=overlap, batch=batch, spacing=spacings[path])
            contents = [_encode_mask(mask, path)]
            if overlays:
                contents.append(picture.draw(image, mask, path.name, spacings[path]))
        if path not in failures:
            output.write(dict(zip(files.written, contents, strict=True)), path, to_remove=files.removed)
            written += files.written
    output.finish()
    on_progress(len(sources), len(sources))
    if failures:
        count = len({*sources.values(), *failures})
        raise Unfinished(written, failures, count) if count > 1 else failures.popitem()[1]
    return written


class Unfinished(ValueError):
    """Error that some files of a folder could not be segmented; the masks of the others were written.

    Args:
        written: the paths of the written files.
        failures: the error of each file that could not be segmented, by path.
        count: the number of all files.

    Attributes:
        written: the paths of the written files.
        failures: the error of each file that could not be segmented, by path.
    """

    def __init__(self, written: Sequence[Path], failures: Mapping[Path, Exception], count: int) -> None:
        self.written, self.failures = list(written), dict(failures)
        first = shorten(str(next(iter(self.failures.values()))))
        super().__init__(f"expected to segment {count} files, got errors in {len(self.failures)} of them: {first}")


def _check_files(
    network: Network, sources: Iterable[Path]
) -> tuple[dict[Path, tuple[float, ...]], dict[Path, Exception]]:
    """Check the metadata of files; return the voxel spacing of each valid file and the error of each invalid file.

    Args:
        network: the network that takes the files.
        sources: the files.

    Returns:
        The spacings by path, as `_check_file` returns them, and the errors by path.
    """
    spacings: dict[Path, tuple[float, ...]] = {}
    failures: dict[Path, Exception] = {}
    for path in sources:
        with _collecting(failures, path):
            spacings[path] = _check_file(network, path)
    return spacings, failures


def _check_file(network: Network, path: Path) -> tuple[float, ...]:
    """Check that the network can take a file. Return its declared voxel spacing in mm, or () if it declares none.

    Raises:
        ValueError: if the file cannot be read, or has other channels, axes or range of values than the network takes.
            The message names the file.
    """
    metadata = network.preparation.describe(path)
    network.check_inputs(metadata.image_shape, str(path))
    network.check_scale(metadata.image_dtype, str(path))
    with adding_path(path):
        spacing = geometry.spacing if (geometry := read_geometry(path)) else ()
        network.preparation.size_of(metadata.image_shape[1:], spacing)   # raises if it needs a spacing
    return spacing


def _unsupported(source: Path) -> dict[Path, Exception]:
    """Return an error for each image or volume in a folder whose format is not supported."""
    ignored = ignored_files(source) if source.is_dir() else []
    return {path: ValueError(f"cannot read {path}: {fix}") for path in ignored if (fix := unsupported_format(path))}


@contextmanager
def _collecting(failures: dict[Path, Exception], path: Path) -> Iterator[None]:
    """Suppress an error that the `with` block raises for a file, and store it in `failures[path]`.

    Only ValueError, OSError and errors for too little memory are suppressed.

    Args:
        failures: the errors by path; changed in place.
        path: the file.
    """
    try:
        with adding_path(path):
            yield
    except (ValueError, OSError) as err:
        failures[path] = err
    except Exception as err:
        if not is_out_of_memory(err):
            raise
        fix = "set --window, or a smaller --size or --batch"
        failures[path] = ValueError(f"out of memory for {path}: {shorten(str(err))}: {fix}")


@dataclass(frozen=True)
class _Targets:
    """The output files of one input.

    Attributes:
        written: the files to write: the mask, and the overlay if it is drawn.
        removed: the files to remove if an earlier call wrote them: the overlay if it is not drawn.
    """

    written: list[Path]
    removed: list[Path]


def _targets(out: Path, name: str, source: Path, overlays: bool) -> _Targets:
    """Return the output files of an input.

    Args:
        out: the output folder.
        name: the name of the input without its ending.
        source: the file of the input.
        overlays: whether overlays are drawn.
    """
    mask = out / MASKS / f"{name}{ending(source) if ending(source) in VOLUMES else '.png'}"
    overlay = out / OVERLAYS / f"{name}.png"
    return _Targets([mask, overlay], []) if overlays else _Targets([mask], [overlay])


def _encode_mask(mask: NDArray[Any], source: Path) -> bytes:
    """Return the bytes of a mask's file: in the format and with the header of a volume `source`, else a PNG.

    Args:
        mask: (*S), the class indices.
        source: the file of the input.
    """
    if ending(source) not in VOLUMES:
        return _encode_png(mask)
    with TemporaryDirectory() as folder:
        write_mask(path := Path(folder) / f"mask{ending(source)}", mask, source)
        return path.read_bytes()


def maps_file(network: Network, source: str | Path, out: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write the attention coefficients of every gate and block for an image or a volume. Return the written files.

    out/NAME.png is a picture of the coefficients over the image, where NAME is the name of `source` without its ending.
    out/NAME has one .npy file for each gate and block, with the array that `attzoo.attention_maps` returns.

    Args:
        network: the network, from `open_network`.
        source: the file of the image or volume.
        out: the output folder; it is created if needed.
        overwrite: whether to replace files that attzoo did not write; inputs are never replaced.

    Returns:
        The paths of the written files.

    Raises:
        OSError: if `source` is not a file, `out` is not a folder, or a file may not be replaced.
        ValueError: if the file cannot be read or the network cannot take it, with a message that names the file; if
            out/NAME has arrays with other names, such as those of another network; or as `attention_maps`.
        ModuleNotFoundError: if matplotlib is not installed.
    """
    package("matplotlib")   # raises before the forward pass if it is not installed
    source, out = Path(source), Path(out)
    name = _stem(source)
    folder = usable_folder(out / (name if name.strip(".") else "_" * len(name)))   # out/".." is the parent of out
    if source.is_dir() or not source.exists():
        absent = f"no file {source}: give an existing path"
        got = f"the folder {source}: give one of its files" if source.is_dir() else absent
        raise FileNotFoundError(f"expected one image or volume, got {got}")
    output = Output(out, network.preparation.files(source), overwrite)
    spacing = _check_file(network, source)
    image = network.preparation.read(source)
    with adding_path(source):
        x = network.preparation(image, spacing)[None]
    with maps.attention_maps(network.model) as coefficients:
        network(x)
    written = [out / f"{name}.png", *(folder / f"{file_name}.npy" for file_name in _safe_names(coefficients))]
    if other_arrays := sorted(set(folder.glob("*.npy")) - set(written)):
        fix = "remove the arrays of other networks, or set another --out"
        raise ValueError(f"expected only arrays of this network in {folder}, got {other_arrays[0].name}: {fix}")
    output.check(written, source)
    title = f"Where the network looks in {source.name}"
    picture_data = maps.draw(image, coefficients, title, spacing[: image.ndim - 1])
    contents = [picture_data, *map(_encode_npy, coefficients.values())]
    output.write(dict(zip(written, contents, strict=True)), source)
    output.finish()
    return written


def _sources(network: Network, source: Path) -> dict[str, Path]:
    """Return the input files, by name without ending: a file `source`, or the files in a folder `source`.

    If each channel of an image is a file of its own, return the first of them, by the name of the image.

    Raises:
        FileNotFoundError: if `source` does not exist.
        ValueError: as `paths_by_name` and `first_files`, or if the file is not that of the first channel.
    """
    if source.is_dir():
        paths = paths_by_name(source)
        return first_files(paths) if network.preparation.channel_files else paths
    if not source.exists():
        got = f"no file or folder {source}: give an existing path"
        raise FileNotFoundError(f"expected an image, a volume or a folder of these, got {got}")
    name = _stem(source)
    if network.preparation.channel_files and not name.endswith(FIRST):
        reason = "because the network was trained with --channel-files"
        raise ValueError(f"expected the file of the first channel, NAME{FIRST}, {reason}, got {source}: give that file")
    return {name.removesuffix(FIRST) if network.preparation.channel_files else name: source}


def _stem(path: Path) -> str:
    """Return the name of a file without its ending."""
    return path.name[: len(path.name) - len(ending(path))]


def _safe_names(coefficients: Mapping[str, Array]) -> list[str]:
    """Return a unique file name, without ending, for the path of each block.

    The names consist of the characters A-Z, a-z, 0-9, ".", "_" and "-".
    """
    names: list[str] = []
    for path in coefficients:
        name = re.sub(r"[^A-Za-z0-9._-]|^\.", "_", path) or "model"
        while name.lower() in map(str.lower, names):   # some file systems ignore case
            name += "_"
        names.append(name)
    return names


def _encode_npy(array: NDArray[Any]) -> bytes:
    """Return the bytes of a .npy file of an array."""
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _encode_png(mask: NDArray[Any]) -> bytes:
    """Return the bytes of a grey PNG with class indices (H, W), uint8 or uint16.

    The PNG has no palette, since other programs could read a palette as colours.
    """
    file = BytesIO()
    package("PIL.Image").fromarray(mask).save(file, "PNG")
    return file.getvalue()
