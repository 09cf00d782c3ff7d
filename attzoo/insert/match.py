"""Which modules or layers of a network a pattern chooses."""

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
    """Return the modules that a pattern chooses, by path, in their order in the network.

    Args:
        modules: every module of the network by path; the network itself, "", is never chosen.
        pattern: as `attach` takes it, but for names of places.
        argument: the name of the argument that gave the pattern, for errors.
        owner: the class of the network, for errors.

    Raises:
        TypeError: the pattern, or one in a list, is of none of the kinds.
        ValueError: a pattern chooses nothing, or a module and another one inside it.

    """
    patterns = list(pattern) if isinstance(pattern, (list, tuple, set, frozenset)) else [pattern]
    chosen: set[str] = set()
    for each in patterns:
        paths = [path for path, module in modules.items() if path and _matches(each, path, module, argument)]
        if not paths:
            raise ValueError(f"{argument}={_shown(each)} matches no module of {owner}{_suggestion(each, modules)}")
        chosen.update(paths)
    if not chosen:
        raise ValueError(f"{argument} must have a pattern, got an empty list")
    _refuse_nested(chosen, argument)
    return {path: module for path, module in modules.items() if path in chosen}


def _matches(pattern: Any, path: str, module: Any, argument: str) -> bool:
    """Whether one pattern chooses a module."""
    if isinstance(pattern, str):
        return path == pattern or (any(letter in pattern for letter in GLOB) and fnmatchcase(path, pattern))
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
    """Raise TypeError for a function that does not take a path and a module."""
    try:
        signature(function).bind("", None)
    except ValueError:   # some functions of C have no signature
        return
    except TypeError as err:
        got = f"{getattr(function, '__name__', function)}{signature(function)}"
        raise TypeError(f"{argument} must be a function of path and module, got {shorten(got, 100)}") from err


def _refuse_nested(paths: set[str], argument: str) -> None:
    """Raise ValueError where a chosen module lies inside another."""
    for path in sorted(paths):
        parts = path.split(".")
        for i in range(1, len(parts)):
            if (outer := ".".join(parts[:i])) in paths:
                hint = "give a narrower pattern, or the paths as a list"
                raise ValueError(f"{argument} is ambiguous: it matches {outer!r} and {path!r} inside it; {hint}")


def _suggestion(pattern: Any, modules: Mapping[str, Any]) -> str:
    """Return the nearest paths, or the classes that there are."""
    modules = {path: module for path, module in modules.items() if path}
    if not modules:
        return ", which has no modules inside it: the module itself cannot be chosen, put it into a Sequential"
    if isinstance(pattern, str):
        return nearest(pattern, modules) or f". It has: {_listed([*modules])}"
    if isinstance(pattern, type):
        return f". Its modules are of: {_listed(sorted({type(module).__name__ for module in modules.values()}))}"
    return f". Its paths are: {_listed([*modules])}"


def _listed(names: Sequence[str]) -> str:
    return shorten(", ".join(names), 300)


def _shown(pattern: Any) -> str:
    """Return a pattern as an error shows it."""
    if isinstance(pattern, type):
        return pattern.__name__
    return shorten(getattr(pattern, "__name__", None) or repr(pattern), 100)
