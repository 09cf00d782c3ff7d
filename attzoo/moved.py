"""Names that have moved: their old place gives them for one release, with a DeprecationWarning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def moved(module: str, name: str, places: Mapping[str, str]) -> Any:
    """What `module.__getattr__(name)` returns: the attribute that `places` names, as "module.attribute".

    Raises AttributeError for a name that has not moved.
    """
    if name not in places:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(f"{module}.{name} is now {places[name]}; the next release has no {module}.{name}",
                  DeprecationWarning, stacklevel=3)   # fmt: skip
    place, _, attribute = places[name].rpartition(".")
    return getattr(import_module(place), attribute)
