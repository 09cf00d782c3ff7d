"""Import of the packages that the extra "train" installs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..extras import missing


def package(name: str) -> Any:
    """Import a package of the extra "train" and return it.

    Raises:
        ModuleNotFoundError: if it is not installed. The message has the install command.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as err:
        if err.name != name.partition(".")[0]:   # a dependency of the package is missing, not the package
            raise
        raise ModuleNotFoundError(missing(name, "train", "attzoo train"), name=err.name) from err
