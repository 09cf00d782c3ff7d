"""Import of the packages that the extra "train" installs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..extras import missing


def package(name: str) -> Any:
    """Import a package or module that the extra "train" installs, and return it.

    Raises:
        ModuleNotFoundError: if the package is not installed. The message has the install command.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as err:
        if err.name != name.partition(".")[0]:   # a dependency of the installed package is missing
            raise
        raise ModuleNotFoundError(missing(name, "train", "attzoo train"), name=err.name) from err
