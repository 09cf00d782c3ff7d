"""Select the modules or layers of a network that match a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

from ..adapters import framework_of
from ..contract import shorten
from ..hints import nearest

GLOB = "*?["


def select(modules: Mapping[str, Any], pattern: Any, argument: str, owner: str) -> dict[str, Any]:
    """Return the modules that match a pattern, by path, in their order in the network.

    Args:
        modules: every module of the network by path; the network itself, "", never matches.
        pattern: as `after` of `attach`, without "residual" and "skips".
        argument: the name of the argument with the pattern, for errors.
        owner: the class of the network, for errors.

    Raises:
        TypeError: the pattern, or an item of a list of patterns, has another type.
        ValueError: no module matches a pattern, or both a module and a module inside it match.

    """
    patterns = list(pattern) if isinstance(pattern, (list, tuple, set, frozenset)) else [pattern]
    chosen: set[str] = set()
    for single_pattern in patterns:
        paths = [path for path, module in modules.items() if path and _matches(single_pattern, path, module, argument)]
        if not paths:
            suggestion = _suggestion(single_pattern, modules)
            raise ValueError(f"{argument}={_text_of(single_pattern)} matches no module of {owner}{suggestion}")
        chosen.update(paths)
    if not chosen:
        raise ValueError(f"{argument} must have a pattern, got an empty list")
    _check_not_nested(chosen, argument)
    return {path: module for path, module in modules.items() if path in chosen}


def _matches(pattern: Any, path: str, module: Any, argument: str) -> bool:
    """Whether a module at `path` matches one pattern. Raise TypeError if the pattern has another type.

    argument: the name of the argument with the pattern, for the error.
    """
    if isinstance(pattern, str):
        return path == pattern or (any(character in pattern for character in GLOB) and fnmatchcase(path, pattern))
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(path) is not None
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    if callable(pattern) and framework_of(pattern) is None:   # a layer or module is callable too
        _check_takes_two(pattern, argument)
        return bool(pattern(path, module))
    kinds = "a path, a compiled regular expression, a class or a function of path and module"
    raise TypeError(f"{argument} must be {kinds}, or a list of these, got {type(pattern).__name__}")


def _check_takes_two(function: Any, argument: str) -> None:
    """Raise TypeError if a function does not take a path and a module. argument: as in `select`."""
    try:
        signature(function).bind("", None)
    except ValueError:   # some functions written in C have no signature
        return
    except TypeError as err:
        got = f"{getattr(function, '__name__', function)}{signature(function)}"
        raise TypeError(f"{argument} must be a function of path and module, got {shorten(got, 100)}") from err


def _check_not_nested(paths: set[str], argument: str) -> None:
    """Raise ValueError if a selected path is inside another one. argument: as in `select`."""
    for path in sorted(paths):
        parts = path.split(".")
        for i in range(1, len(parts)):
            if (outer := ".".join(parts[:i])) in paths:
                hint = "give a narrower pattern, or the paths as a list"
                raise ValueError(f"{argument} is ambiguous: it matches {outer!r} and {path!r} inside it; {hint}")


def _suggestion(pattern: Any, modules: Mapping[str, Any]) -> str:
    """Return the end of the error that a pattern has no match: the nearest path, or all paths or classes."""
    modules = {path: module for path, module in modules.items() if path}
    if not modules:
        return ", which has no modules inside it: put it into a Sequential, and choose it there"
    if isinstance(pattern, str):
        return nearest(pattern, modules) or f". It has: {_join_names([*modules])}"
    if isinstance(pattern, type):
        return f". Its modules are of: {_join_names(sorted({type(module).__name__ for module in modules.values()}))}"
    return f". Its paths are: {_join_names([*modules])}"


def _join_names(names: Sequence[str]) -> str:
    """Return names separated by commas, shortened for an error."""
    return shorten(", ".join(names), 300)


def _text_of(pattern: Any) -> str:
    """Return the text of a pattern for an error."""
    if isinstance(pattern, type):
        return pattern.__name__
    return shorten(getattr(pattern, "__name__", None) or repr(pattern), 100)
