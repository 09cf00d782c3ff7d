"""Suggestions of the nearest known name, for errors about unknown names, arguments and choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, Final, Self, get_args, get_type_hints

SIMILAR: Final = 0.55   # smallest ratio, 0 to 1, of a suggested name; "ratio" and "reduction" have 0.57

SYNONYMS: Final = {   # names of arguments in timm, torchvision, MONAI and popular repositories -> ours
    "in_channels": "channels",
    "input_channels": "channels",
    "gate_channels": "channels",
    "F_l": "channels",
    "F_g": "gating_channels",
    "F_int": "inter_channels",
    "rd_channels": "reduced_channels",
    "squeeze_channels": "reduced_channels",
    "rd_ratio": "reduction",
    "reduction_ratio": "reduction",
    "squeeze_factor": "reduction",
    "k_size": "kernel_size",
    "sub_sample_factor": "stride",
    "factor": "groups",
    "gate_layer": "gate",
    "scale_activation": "gate",
}


def nearest(word: Any, names: Iterable[Any]) -> str:
    """Return the text "; did you mean 'x'?" with x the nearest of `names` to `word`, or "" if none is similar.

    >>> nearest("sigmiod", ["sigmoid", "hard_sigmoid"]), nearest("xyz", ["sigmoid"]), nearest(3, [1, 2])
    ("; did you mean 'sigmoid'?", '', '')
    """
    words = [str(name) for name in names if isinstance(name, str)]
    suggestions = [SYNONYMS[word]] if isinstance(word, str) and SYNONYMS.get(word) in words else []
    if isinstance(word, str) and not suggestions:
        suggestions = get_close_matches(word[:100].lower(), words, n=1, cutoff=SIMILAR)
    return f"; did you mean {suggestions[0]!r}?" if suggestions else ""


def unknown_argument(owner: str, name: str, names: Iterable[str]) -> TypeError:
    """Return the error for a keyword argument that `owner` does not take. It suggests the nearest of `names`."""
    names = list(names)
    return TypeError(f"{owner} takes no argument {name!r}{nearest(name, names) or '.'} It takes: {', '.join(names)}")


def check_arguments(cls: type, arguments: Mapping[str, Any]) -> None:
    """Raise TypeError unless the `__init__` of `cls` takes every keyword argument in `arguments`.

    An `__init__` with **kwargs takes any name.
    """
    known_names, takes_kwargs = arguments_of(cls) if arguments else ((), False)
    for name in arguments:
        if name not in known_names and not takes_kwargs:
            raise unknown_argument(cls.__name__, name, known_names)


class NamedArguments:
    """Base class whose TypeError for an unknown keyword argument suggests the nearest known argument."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Create an instance. Raise TypeError for a keyword argument that `__init__` does not take."""
        check_arguments(cls, kwargs)
        return super().__new__(cls)


def arguments_of(cls: type) -> tuple[tuple[str, ...], bool]:
    """Return the names of the arguments of `cls.__init__`, and whether it takes any other by **kwargs."""
    init: Any = cls.__init__   # type: ignore[misc]
    names: list[str] = []
    takes_kwargs = False
    for parameter in list(signature(init).parameters.values())[1:]:
        if parameter.kind is not Parameter.VAR_KEYWORD:
            names.append(parameter.name)
        elif str(parameter.annotation).startswith("Unpack["):   # the keys of the TypedDict are the names
            names.extend(get_type_hints(get_args(get_type_hints(init)[parameter.name])[0]))
        else:
            takes_kwargs = True
    return tuple(names), takes_kwargs
