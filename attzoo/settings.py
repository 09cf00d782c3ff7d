"""Choice between eager and fused forms of blocks. It belongs to a context (`contextvars`) and is read at every call."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from . import contract
from .scope import Stack

KERNELS: Final = ("auto", "eager", "triton")
VARIABLE: Final = "ATTZOO_KERNELS"
DEFAULT: Final[str] = contract.choice(VARIABLE, os.environ.get(VARIABLE) or "auto", KERNELS)


class kernels:   # in lower case, as it is used like a function
    """Choose how PyTorch blocks are computed, from now on or for a `with` block. Keras blocks ignore this.

    The choice applies to this context only, as torch.set_grad_enabled applies to its thread. Other threads, also those
    started inside the `with` block, use the environment variable ATTZOO_KERNELS, or "auto". To use the choice in
    another thread, run it in a copy of the context: `contextvars.copy_context().run(call)`.

    Args:
        mode: "auto" uses fused kernels where a recorded measurement shows that they are faster, and the eager form
            elsewhere. "eager" always uses the eager form. "triton" always uses fused kernels; a call for which there
            is none raises RuntimeError with the reason.

    Raises:
        ValueError: `mode` is none of these.

    Examples:
        >>> with kernels("eager"):
        ...     pass

    """

    def __init__(self, mode: str) -> None:
        self.mode = contract.choice("kernels", mode, KERNELS)
        entries = _CHOICES.get()
        if [entry.inside for entry in entries[-2:]] == [False, False]:   # no `with` block restores the first of them
            entries = (*entries[:-2], entries[-1])
        _CHOICES.set((*entries, _Choice(self, inside=False)))

    def __repr__(self) -> str:
        """Return the call that makes this choice, as text."""
        return f"kernels({self.mode!r})"

    def __enter__(self) -> None:
        """Limit this choice to the `with` block. Without `with`, a choice applies until the next one."""
        entries = _CHOICES.get()
        if entries and entries[-1] == _Choice(self, inside=False):
            entries = entries[:-1]
        _CHOICES.set((*entries, _Choice(self, inside=True)))

    def __exit__(self, *error: object) -> None:
        """Undo this choice, and every choice made inside the `with` block without a `with` block of its own."""
        before, after = _split(_CHOICES.get(), _Choice(self, inside=True))
        while after and not after[0].inside:   # choices made inside the `with` block
            after = after[1:]
        _CHOICES.set(before + after)


@dataclass(frozen=True)
class _Choice:
    """A choice of how blocks are computed, and whether it ends with a `with` block."""

    setting: kernels
    inside: bool


_CHOICES: Final[Stack[_Choice]] = Stack("choices")


def _split(entries: tuple[_Choice, ...], entry: _Choice) -> tuple[tuple[_Choice, ...], tuple[_Choice, ...]]:
    """Return the entries before and after the last occurrence of `entry` in `entries`; (entries, ()) without one."""
    if entry not in entries:   # the `with` block ends in another context
        return entries, ()
    index = len(entries) - 1 - entries[::-1].index(entry)
    return entries[:index], entries[index + 1 :]


def __getattr__(name: str) -> str:
    """Return the value of the attribute `chosen`: the mode of this context, "auto", "eager" or "triton".

    `chosen` is an attribute and no function, because torch.compile cannot read a ContextVar, but checks attributes.
    """
    if name != "chosen":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    entries = _CHOICES.get()
    return entries[-1].setting.mode if entries else DEFAULT
