"""Recording what the blocks of a model return from `attention`: what attention_maps does, in its own context alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final

from . import scope
from .scope import Stack

LOCK: Final = Lock()   # of taps that are put in and taken out, by any thread


class Recorder:
    """What a `with` records by: record(block, coefficients), until it is closed."""

    def __init__(self, blocks: Iterable[Any], record: Callable[[Any, Any], None]) -> None:
        self.blocks = {id(block): block for block in blocks}
        self.record = record
        self.closed = False

    def records(self, block: Any) -> bool:
        return not self.closed and id(block) in self.blocks


class Tap:
    """Stands in the place of a block's `attention` while any context records it, and reports what that returns.

    Copies of the block, by `copy` or pickle, are made without it.
    """

    def __init__(self, block: Any) -> None:
        self.block, self.attention = block, block.attention
        own = vars(block)
        self.replaced = {name: own[name] for name in ("attention", "__reduce_ex__") if name in own}
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        coefficients = self.attention(*args, **kwargs)
        for recorder in scope.recorders:
            if recorder.records(self.block):
                recorder.record(self.block, coefficients)
        return coefficients

    def put_in(self) -> None:
        own = vars(self.block)   # past __setattr__, by which a framework would note it
        own["attention"], own["__reduce_ex__"] = self, self.reduce

    def take_out(self, own: dict[str, Any]) -> None:
        """Restore what was replaced, unless the user has set or deleted the attribute meanwhile."""
        for name, mine in (("attention", self), ("__reduce_ex__", self.reduce)):
            if own.get(name) == mine:
                del own[name]
                own.update({name: self.replaced[name]} if name in self.replaced else {})

    def reduce(self, protocol: Any) -> Any:
        """How the block is copied: as its class has it, without the tap."""
        reduce_ex: Any = type(self.block).__reduce_ex__
        parts = list(reduce_ex(self.block, protocol))
        if len(parts) > 2 and isinstance(parts[2], dict):
            parts[2] = dict(parts[2])
            if parts[2].get("attention") is self:
                self.take_out(parts[2])
        return tuple(parts)


_RECORDERS: Final[Stack[Recorder]] = Stack("recorders")


@contextmanager
def recording(blocks: Iterable[Any], record: Callable[[Any, Any], None]) -> Iterator[None]:
    """Inside, and in this context, call record(block, coefficients) with what the attention of each block returns."""
    recorder = Recorder(blocks, record)
    with LOCK:
        taps = [_tap(block) for block in recorder.blocks.values()]
    _RECORDERS.set((*_RECORDERS.get(), recorder))
    try:
        yield
    finally:
        recorder.closed = True   # for contexts that were copied inside
        _RECORDERS.set(tuple(each for each in _RECORDERS.get() if not each.closed))
        with LOCK:
            for tap in taps:
                tap.users -= 1
                if not tap.users:
                    tap.take_out(vars(tap.block))


def _tap(block: Any) -> Tap:
    """The tap of a block, put in unless it is there, with one more user."""
    tap = vars(block).get("attention")
    if not isinstance(tap, Tap) or tap.block is not block:
        tap = Tap(block)
        tap.put_in()
    tap.users += 1
    return tap


def is_idle(attention: Any) -> bool:
    """Whether this is a tap through which nobody in this context records."""
    return isinstance(attention, Tap) and not any(each.records(attention.block) for each in scope.recorders)
