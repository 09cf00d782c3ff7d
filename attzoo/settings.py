"""Which form of a block computes: a setting of each context, as contextvars have them, read at every call."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from . import contract
from .scope import Stack

KERNELS: Final = ("auto", "eager", "triton")
VARIABLE: Final = "ATTZOO_KERNELS"
DEFAULT: Final[str] = contract.choice(VARIABLE, os.environ.get(VARIABLE) or "auto", KERNELS)


class kernels:   # in small letters, for it is called like a function
    """Choose what computes PyTorch blocks: from here on or, in a `with`, inside it.

    mode: "auto" takes a fused kernel where a recorded measurement says that it wins, and the plain form elsewhere;
    "eager" takes the plain form always; "triton" takes the kernels, and a call raises RuntimeError, with the reason,
    where there is none. Keras blocks ignore it.

    The choice holds for this context alone, as torch.set_grad_enabled does for its thread: other threads, also those
    started inside a `with`, have what the environment variable ATTZOO_KERNELS says, or "auto". A thread that is to
    have this context's choice runs in a copy of it, `contextvars.copy_context().run(call)`.
    Raises ValueError for another mode.

    >>> with kernels("eager"):
    ...     pass
    """

    def __init__(self, mode: str) -> None:
        self.mode = contract.choice("kernels", mode, KERNELS)
        entries = _CHOICES.get()
        if [entry.inside for entry in entries[-2:]] == [False, False]:   # no `with` will come back to the first of them
            entries = (*entries[:-2], entries[-1])
        _CHOICES.set((*entries, _Choice(self, inside=False)))

    def __repr__(self) -> str:
        return f"kernels({self.mode!r})"

    def __enter__(self) -> None:
        entries = _CHOICES.get()
        if entries and entries[-1] == _Choice(self, inside=False):
            entries = entries[:-1]
        _CHOICES.set((*entries, _Choice(self, inside=True)))

    def __exit__(self, *error: object) -> None:
        before, after = _split(_CHOICES.get(), _Choice(self, inside=True))
        while after and not after[0].inside:   # chosen inside
            after = after[1:]
        _CHOICES.set(before + after)


@dataclass(frozen=True)
class _Choice:
    """A setting, and whether a `with` holds it."""

    setting: kernels
    inside: bool


_CHOICES: Final[Stack[_Choice]] = Stack("choices")


def _split(entries: tuple[_Choice, ...], entry: _Choice) -> tuple[tuple[_Choice, ...], tuple[_Choice, ...]]:
    """What stands before the last such entry, and what stands after it."""
    if entry not in entries:   # left in another context than it was entered in
        return entries, ()
    at = len(entries) - 1 - entries[::-1].index(entry)
    return entries[:at], entries[at + 1 :]


def __getattr__(name: str) -> str:
    """`chosen`, the mode of this context: an attribute for the reason that `scope` gives."""
    if name != "chosen":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    entries = _CHOICES.get()
    return entries[-1].setting.mode if entries else DEFAULT
