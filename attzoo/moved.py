"""Deprecated aliases of attributes that moved to another module. Each lasts for one release."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def moved(module: str, name: str, replacements: Mapping[str, str]) -> Any:
    """Return the attribute that has replaced `module.name`, and warn. Call it in `__getattr__` of the old module.

    The warning is a DeprecationWarning.

    Args:
        module: name of the old module.
        name: old name of the attribute.
        replacements: old name -> new location, as "module.attribute".

    Raises:
        AttributeError: `name` is not in `replacements`.

    """
    if name not in replacements:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    message = f"{module}.{name} is deprecated and will be removed in the next release: use {replacements[name]}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    new_module, _, attribute = replacements[name].rpartition(".")
    return getattr(import_module(new_module), attribute)
