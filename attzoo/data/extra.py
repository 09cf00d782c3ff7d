"""Packages that come with the extra "train"."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..extras import missing


def package(name: str) -> Any:
    """A package of the extra "train". Raises ModuleNotFoundError, with the install command, where it is absent."""
    try:
        return import_module(name)
    except ModuleNotFoundError as err:
        if err.name != name.partition(".")[0]:   # a broken install is not a missing one
            raise
        raise ModuleNotFoundError(missing(name, "train", "attzoo train"), name=err.name) from err
