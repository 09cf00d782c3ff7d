"""Names that have moved: their old place gives them for one release, with a DeprecationWarning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def moved(module: str, name: str, places: Mapping[str, str]) -> Any:
    """What `module.__getattr__(name)` returns: the attribute of that name in the module that `places` says.

    Raises AttributeError for a name that has not moved.
    """
    if name not in places:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(f"{module}.{name} is now {places[name]}.{name}; the next release has no {module}.{name}",
                  DeprecationWarning, stacklevel=3)   # fmt: skip
    return getattr(import_module(places[name]), name)
