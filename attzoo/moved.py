"""Deprecated names of attributes. Each lasts for one release."""

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
    warn_deprecated(f"{module}.{name}", replacements[name], stacklevel=4)
    new_module, _, attribute = replacements[name].rpartition(".")
    return getattr(import_module(new_module), attribute)


def warn_deprecated(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn with DeprecationWarning that `old` is a deprecated name of `new`.

    stacklevel: as in `warnings.warn`; by default the warning names the line that calls the caller of this function.
    """
    message = f"{old} is deprecated and will be removed in the next release: use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
