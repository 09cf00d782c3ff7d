"""Which known name a user may have meant: for every error about a name, an argument or a choice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, Final, Self, get_args, get_type_hints

SIMILAR: Final = 0.55   # of 1, the least similarity of a name that is proposed: "ratio" and "reduction" have 0.57


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
    "gate_layer": "gate",
    "scale_activation": "gate",
}


def nearest(word: Any, known: Iterable[Any]) -> str:
    """A question to end an error with, after the word that isn't known; nothing where no known one is like it.

    >>> nearest("sigmiod", ["sigmoid", "hard_sigmoid"]), nearest("xyz", ["sigmoid"]), nearest(3, [1, 2])
    ("; did you mean 'sigmoid'?", '', '')
    """
    words = [str(each) for each in known if isinstance(each, str)]
    found = [SYNONYMS[word]] if isinstance(word, str) and SYNONYMS.get(word) in words else []
    if isinstance(word, str) and not found:
        found = get_close_matches(word[:100].lower(), words, n=1, cutoff=SIMILAR)
    return f"; did you mean {found[0]!r}?" if found else ""


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for a keyword argument that does not exist."""
    known = list(known)
    return TypeError(f"{owner} takes no argument {name!r}{nearest(name, known) or '.'} It takes: {', '.join(known)}")


def check_arguments(cls: type, given: Mapping[str, Any]) -> None:
    """Raise TypeError unless all keyword arguments are in the signature of a class's `__init__`.

    One that hands any further arguments on, as **kwargs, leaves unknown names to what takes them.
    """
    known, is_open = arguments_of(cls) if given else ((), False)
    for name in given:
        if name not in known and not is_open:
            raise unknown_argument(cls.__name__, name, known)


class NamedArguments:
    """A base of classes whose error for an unknown keyword argument proposes the nearest of their own."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Raise TypeError as `check_arguments` does."""
        check_arguments(cls, kwargs)
        return super().__new__(cls)


def arguments_of(cls: type) -> tuple[tuple[str, ...], bool]:
    """The names of the arguments of a class, and whether it hands others on."""
    init: Any = cls.__init__   # type: ignore[misc]
    names: list[str] = []
    is_open = False
    for each in list(signature(init).parameters.values())[1:]:
        if each.kind is not Parameter.VAR_KEYWORD:
            names.append(each.name)
        elif str(each.annotation).startswith("Unpack["):   # of a TypedDict, which has the names
            names.extend(get_type_hints(get_args(get_type_hints(init)[each.name])[0]))
        else:
            is_open = True
    return tuple(names), is_open
