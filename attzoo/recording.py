"""Record what blocks return from `attention`, for the calls in one context. `attention_maps` is built on this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final

from . import scope
from .scope import Stack

LOCK: Final = Lock()   # held while any thread installs or removes taps (class Tap)


class Recorder:
    """One active `recording` of some blocks. It calls record(block, coefficients) at each of their calls."""

    def __init__(self, blocks: Iterable[Any], record: Callable[[Any, Any], None]) -> None:
        self.blocks = {id(block): block for block in blocks}
        self.record = record
        self.closed = False

    def records(self, block: Any) -> bool:
        """Whether calls of this block are recorded."""
        return not self.closed and id(block) in self.blocks


class Tap:
    """Replacement for a block's method `attention` while any context records the block.

    It calls the method and passes the result to the recorders. Copies of the block, by `copy` or pickle, do not have
    it.
    """

    def __init__(self, block: Any) -> None:
        self.block, self.attention = block, block.attention
        attributes = vars(block)
        self.replaced = {name: attributes[name] for name in ("attention", "__reduce_ex__") if name in attributes}
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what `attention` returns, and pass it to every recorder of this context that records the block."""
        coefficients = self.attention(*args, **kwargs)
        for recorder in scope.recorders:
            if recorder.records(self.block):
                recorder.record(self.block, coefficients)
        return coefficients

    def install(self) -> None:
        """Replace `attention` of the block by this object, and `__reduce_ex__` by `reduce`, in place."""
        attributes = vars(self.block)   # not by __setattr__, with which frameworks track attributes
        attributes["attention"], attributes["__reduce_ex__"] = self, self.reduce

    def remove(self, attributes: dict[str, Any]) -> None:
        """Restore the replaced attributes in the `__dict__` of the block or of a copy of it.

        An attribute that the user has set or deleted since `install` is left as it is.
        """
        for name, installed in (("attention", self), ("__reduce_ex__", self.reduce)):
            if attributes.get(name) == installed:
                del attributes[name]
                if name in self.replaced:
                    attributes[name] = self.replaced[name]

    def reduce(self, protocol: Any) -> Any:
        """Return the result of `__reduce_ex__` of the block's class, for copies and pickles, without the tap."""
        reduce_ex: Any = type(self.block).__reduce_ex__
        parts = list(reduce_ex(self.block, protocol))
        if len(parts) > 2 and isinstance(parts[2], dict):
            parts[2] = dict(parts[2])
            if parts[2].get("attention") is self:
                self.remove(parts[2])
        return tuple(parts)


_RECORDERS: Final[Stack[Recorder]] = Stack("recorders")


@contextmanager
def recording(blocks: Iterable[Any], record: Callable[[Any, Any], None]) -> Iterator[None]:
    """Call record(block, coefficients) for every call of a block's `attention` in this context and `with` block.

    `coefficients` is what `attention` returned.
    """
    recorder = Recorder(blocks, record)
    with LOCK:
        taps = [_acquire_tap(block) for block in recorder.blocks.values()]
    _RECORDERS.set((*_RECORDERS.get(), recorder))
    try:
        yield
    finally:
        recorder.closed = True   # also ends it in copies of the context
        _RECORDERS.set(tuple(active for active in _RECORDERS.get() if not active.closed))
        with LOCK:
            for tap in taps:
                tap.users -= 1
                if not tap.users:
                    tap.remove(vars(tap.block))


def _acquire_tap(block: Any) -> Tap:
    """Return the tap of a block, and count one more user of it. Install a tap if the block has none."""
    tap = vars(block).get("attention")
    if not isinstance(tap, Tap) or tap.block is not block:
        tap = Tap(block)
        tap.install()
    tap.users += 1
    return tap


def is_idle(attention: Any) -> bool:
    """Whether `attention`, an attribute of a block, is a tap whose block no recorder of this context records."""
    return isinstance(attention, Tap) and not any(recorder.records(attention.block) for recorder in scope.recorders)
