"""The command on files: convert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import typer  # noqa: TID253

from .. import portable, registry
from ..extras import install_command
from ..files import whole
from .shared import Backend


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .safetensors file of attzoo.save.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; its ending says what.")],
) -> None:
    """Turn a portable file into one for PyTorch or Keras.

    \b
    OUT ends in
      .pt           a state_dict:        block.load_state_dict(torch.load(OUT))
      .weights.h5   a layer's weights:   keras.saving.load_weights(layer, OUT)
      .keras        a model of it alone: keras.models.load_model(OUT)
      .safetensors  a portable file again, checked and written anew

    OUT appears whole or not at all. Only portable files are read: the others can be made to run code.
    """   # noqa: D301, click reads the backspace
    backend, write = _writer(target)
    if source.suffix != ".safetensors":
        raise ValueError(f"expected a .safetensors file of attzoo.save, got {source}: load it in its own framework")
    block = portable.load(source, backend=backend)
    with whole(target) as path:
        write(block, path)
    typer.echo(f"{target}: {registry.name_of(block.spec)}, {backend}, {target.stat().st_size:,} bytes")


def _writer(target: Path) -> tuple[str, Callable[[Any, Path], None]]:
    """Backend and function for a file of this name."""
    for ending, (backend, write) in WRITERS.items():
        if target.name.endswith(ending):
            return backend or _installed_one(), write
    raise ValueError(f"expected an ending of {', '.join(WRITERS)}, got {target.name}")


def _save_torch(block: Any, path: Path) -> None:
    import torch

    torch.save(block.state_dict(), path)


def _save_keras_weights(block: Any, path: Path) -> None:
    import keras  # a block of Keras is here, so Keras is too, and triton before it

    keras.saving.save_weights(block, path)


def _save_keras(block: Any, path: Path) -> None:
    import keras

    from ..adapters.keras import shapes

    if not isinstance(block, keras.Model):
        inputs = [keras.Input(shape, dtype=block.compute_dtype) for shape in shapes(block)]
        block = keras.Model(inputs, block(*inputs))
    block.save(path)


WRITERS: Final[Mapping[str, tuple[str | None, Callable[[Any, Path], None]]]] = {
    ".pt": ("torch", _save_torch),
    ".pth": ("torch", _save_torch),
    ".weights.h5": ("keras", _save_keras_weights),
    ".keras": ("keras", _save_keras),
    ".safetensors": (None, portable.save),
}


def _installed_one() -> str:
    """Any installed backend; raises where there is none."""
    for backend in Backend:
        if find_spec(backend):
            return backend
    raise ModuleNotFoundError(f'neither torch nor keras is installed: {install_command("torch")}, or with [tensorflow]')
