"""Values that hold inside a `with`: for the context that entered it, as contextvars have them, and for no other.

Every thread begins with an empty context, so that one which is started inside a `with` sees nothing of it, unless it
runs in a copy of the context: `contextvars.copy_context().run(call)`, or `asyncio.to_thread(call)`. PyTorch computes
gradients on a GPU in threads of its own, in which checkpoints call a module again; `use_carrier` lets these threads
have what holds for the thread that called `backward`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")


class Stack(Generic[T]):
    """Values that were entered in this context and not left yet, in order: the attribute `name` of this module."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.variable: ContextVar[tuple[T, ...] | None] = ContextVar(name, default=None)
        STACKS.append(self)

    def get(self) -> tuple[T, ...]:
        """The values; and they are stored again, for this context may be a copy, or follow another in this thread."""
        own = self.variable.get()
        if own is None:
            return _inherited(self.name)
        _store(self.name, (get_ident(), own))
        return own

    def set(self, values: tuple[T, ...]) -> None:
        self.variable.set(values)
        _store(self.name, (get_ident(), values))


STACKS: Final[list[Stack[Any]]] = []


def __getattr__(name: str) -> tuple[Any, ...]:
    """The values of a stack in this context, by its name.

    An attribute of the module and no function, because torch.compile, which cannot read a ContextVar, looks attributes
    up again at every call, and compiles anew where one has changed.
    """
    for stack in STACKS:
        if stack.name == name:
            return stack.get()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _store_nowhere(name: str, value: Any) -> None:
    """Without a framework that starts threads nothing is to be kept for them."""


def _load_nothing(name: str) -> Any:
    return None


_store: Callable[[str, Any], None] = _store_nowhere   # (thread, values) by name, for the threads that work for it
_load: Callable[[str], Any] = _load_nothing           # what the thread that this one works for has stored, or None


def _inherited(name: str) -> tuple[Any, ...]:
    """What another thread has stored for this one. What this one has stored itself is of another context: it goes."""
    thread, values = _load(name) or (get_ident(), ())
    if thread != get_ident():
        return tuple(values)
    if values:
        _store(name, (thread, ()))
    return ()


def use_carrier(store: Callable[[str, Any], None], load: Callable[[str], Any]) -> None:
    """Let a framework carry values over to the threads that it starts."""
    global _store, _load
    _store, _load = store, load
    for stack in STACKS:
        if (own := stack.variable.get()) is not None:
            _store(stack.name, (get_ident(), own))
