"""Command `convert`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final
from zipfile import ZipFile

import typer  # noqa: TID253

from .. import portable, registry
from ..extras import install_command
from ..files import atomic_write, in_memory
from ..hints import nearest
from .shared import Backend, print_path


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .safetensors file written by attzoo.save.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; its extension sets the format.")],
) -> None:
    """Convert a file of attzoo.save to a format of PyTorch or Keras.

    \b
    The extension of OUT is one of
      .pt           a state_dict, for block.load_state_dict(torch.load(OUT))
      .weights.h5   the weights, for keras.saving.load_weights(layer, OUT)
      .keras        a Keras model of the block, for keras.models.load_model(OUT)
      .safetensors  a checked copy of IN

    An error leaves an existing OUT unchanged. A .safetensors file of another program is not replaced. Other formats
    than that of attzoo.save are not read, because loading them can run code.
    """   # noqa: D301, click reads the backspace
    backend, content = _writer(target)
    if portable.has_other_ending(source):
        fix = "load it in its framework, and save the block by attzoo.save"
        raise ValueError(f"expected a .safetensors file of attzoo.save, got {source}: {fix}")
    if content is portable.content:
        portable.check_replaceable(target)
    block = portable.load(source, backend=backend)
    with atomic_write(target) as temporary:   # its errors name the target, also those of writing to memory
        temporary.write_bytes(content(block))
    print_path(f"{target}: {registry.name_of(block.spec)}, {backend}, {target.stat().st_size:,} bytes")


def _writer(target: Path) -> tuple[str, Callable[[Any], bytes]]:
    """Return the backend of a file, and the function that returns the file's content for a block of this backend.

    The extension of `target` decides. Raise ValueError if it is not one of WRITERS.
    """
    for ending, (backend, content) in WRITERS.items():
        if target.name.lower().endswith(ending):
            return backend or _first_installed(), content
    hint = nearest(".weights.h5" if target.suffix.lower() == ".h5" else target.suffix, WRITERS)
    raise ValueError(f"expected a file name that ends in {', '.join(WRITERS)}, got {target.name}{hint}")


def _torch(block: Any) -> bytes:
    """Return the bytes that torch.save writes for the state dict of a block."""
    import torch

    torch.save(block.state_dict(), content := BytesIO())
    return content.getvalue()


def _keras_weights(block: Any) -> bytes:
    """Return the weights as HDF5, from a .keras archive: writing HDF5 to a full disk would end the process."""
    with ZipFile(BytesIO(_archive(block))) as archive:
        return archive.read("model.weights.h5")


def _keras(block: Any) -> bytes:
    """Return a .keras archive, as bytes, of a functional model of the block, or of the network itself."""
    import keras

    from ..adapters.keras import shapes

    if not isinstance(block, keras.Model):
        inputs = [keras.Input(shape, dtype=block.compute_dtype) for shape in shapes(block)]
        block = keras.Model(inputs, block(*inputs))
    return _archive(block)


def _archive(layer: Any) -> bytes:
    """Return the .keras archive of a model or layer as bytes."""
    import keras  # Keras is loaded already, and triton before it

    with in_memory(".keras") as path:
        keras.saving.save_model(layer, path)
        return path.read_bytes()


WRITERS: Final[Mapping[str, tuple[str | None, Callable[[Any], bytes]]]] = {
    ".pt": ("torch", _torch),
    ".pth": ("torch", _torch),
    ".weights.h5": ("keras", _keras_weights),
    ".keras": ("keras", _keras),
    ".safetensors": (None, portable.content),
}


def _first_installed() -> str:
    """Return the first installed backend. Raise ModuleNotFoundError if none is installed."""
    for backend in Backend:
        if find_spec(backend):
            return backend
    command = install_command("torch")
    raise ModuleNotFoundError(f"neither torch nor keras is installed: {command}, or with [tensorflow] for Keras")
