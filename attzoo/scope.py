"""Values that `with` blocks set for their own context (`contextvars`).

Every thread starts with an empty context. A thread that is started inside a `with` block does not see its values,
unless it runs in a copy of the context: `contextvars.copy_context().run(call)` or `asyncio.to_thread(call)`. PyTorch
computes gradients on a GPU in threads of its own, in which checkpoints call modules again. With `use_carrier`, these
threads have the values of the thread that called `backward`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")


class Stack(Generic[T]):
    """Values that the open `with` blocks of this context have set, in order of entry.

    name: a unique name. The values can also be read as `scope.<name>`, an attribute of this module.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.variable: ContextVar[tuple[T, ...] | None] = ContextVar(name, default=None)
        STACKS.append(self)

    def get(self) -> tuple[T, ...]:
        """Return the values of this context, and store them for worker threads.

        They are stored at each call, since the last stored ones may be of another context. If this context has none,
        return those of the thread for which this thread works, or ().
        """
        values = self.variable.get()
        if values is None:
            return _inherited(self.name)
        _store(self.name, (get_ident(), values))
        return values

    def set(self, values: tuple[T, ...]) -> None:
        """Replace the values of this context, and store them for worker threads."""
        self.variable.set(values)
        _store(self.name, (get_ident(), values))


STACKS: Final[list[Stack[Any]]] = []


def __getattr__(name: str) -> tuple[Any, ...]:
    """Return the values of the `Stack` of this name in this context. Raise AttributeError if there is none.

    This is an attribute and not a function because torch.compile cannot read a ContextVar, but checks attributes of
    modules at every call and recompiles if one has changed.
    """
    for stack in STACKS:
        if stack.name == name:
            return stack.get()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _store_nowhere(name: str, value: Any) -> None:
    """Do nothing. This is `store` of `use_carrier` until a framework that starts threads is loaded."""


def _load_nothing(name: str) -> Any:
    """Return None. This is `load` of `use_carrier` until a framework that starts threads is loaded."""
    return None


_store: Callable[[str, Any], None] = _store_nowhere   # stores (thread id, values) by name for worker threads
_load: Callable[[str], Any] = _load_nothing           # returns what the calling thread has stored, or None


def _inherited(name: str) -> tuple[Any, ...]:
    """Return the values stored under `name` by the thread for which this thread works; () if there are none.

    Values that this thread stored itself belong to another context. They are replaced by ().
    """
    thread, values = _load(name) or (get_ident(), ())
    if thread != get_ident():
        return tuple(values)
    if values:
        _store(name, (thread, ()))
    return ()


def use_carrier(store: Callable[[str, Any], None], load: Callable[[str], Any]) -> None:
    """Set the functions that pass values to the threads of a framework, such as those of a backward pass.

    Args:
        store: store(name, value) stores a value for the current thread and for the threads that work for it.
        load: load(name) returns the value that was stored for the current thread, or None.

    """
    global _store, _load
    _store, _load = store, load
    for stack in STACKS:
        if (values := stack.variable.get()) is not None:
            _store(stack.name, (get_ident(), values))
