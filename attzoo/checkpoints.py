"""Read files with the weights of other libraries. No code in a file is run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from .adapters import adapter
from .extras import missing
from .files import open_regular

KERAS: Final = (".h5", ".hdf5", ".keras")   # file extensions


def read_checkpoint(path: Path) -> Any:
    """Return the content of a checkpoint: of a safetensors file, or what torch.save wrote, such as a state dict.

    Raises:
        ModuleNotFoundError: torch is not installed, and the file is not in safetensors format.
        ValueError: the file has another format, or contains Python objects other than arrays and containers.
        OSError: the file cannot be read or is not a regular file.

    """
    if path.suffix.lower() in KERAS:
        fix = "load it by Keras, and pass {v.path: v for v in model.weights}"
        raise ValueError(f"expected a file of torch.save or safetensors, got {path}: {fix}")
    with open_regular(path) as file:
        try:
            return _read_safetensors(file.read()) if path.suffix == ".safetensors" else _torch().read_checkpoint(file)
        except ImportError:
            raise
        except Exception as err:   # damaged files raise exceptions of many types
            expected = "expected a file with arrays only, as torch.save(net.state_dict(), path) writes"
            got = f"{path}, which raises {type(err).__name__}"   # torch's message advises to run the code in the file
            fix = "copy a damaged file again; else load it where you trust it, and save only its state dict"
            raise ValueError(f"{expected}, got {got}: {fix}") from err


def _read_safetensors(data: bytes) -> Mapping[str, Any]:
    """Return the arrays in a safetensors file by name: torch tensors if torch is loaded, else NumPy arrays."""
    framework = "torch" if "torch" in sys.modules else "numpy"   # NumPy has no bfloat16
    arrays: Mapping[str, Any] = import_module(f"safetensors.{framework}").load(data)
    return arrays


def _torch() -> Any:
    """Return the adapter module of torch. Raise ModuleNotFoundError with the extra that installs torch."""
    try:
        return adapter("torch")
    except ModuleNotFoundError as err:
        raise ModuleNotFoundError(missing("torch", "torch", "a checkpoint that is not a safetensors file")) from err
