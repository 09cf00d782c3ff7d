"""Passes that are recorded once and repeated.

What a pass starts depends only on the shapes, strides, dtypes and alignment of its tensors, on its options and on the
device.

To decide tiles, grids and what to allocate takes many lines of Python, several times as long as a small kernel runs. So
the first time that tensors of some shapes come, what a pass does is recorded: the tensors that it allocates, and the
functions that it calls with what. The next time, the same is done with the new tensors.

A pass is recorded only if it does nothing else than to allocate by `allocated` and to call functions by `call`, as
what launches kernels does in triton/common.py. Any other operator, or a view, makes it run in full each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops import guard

MOST: Final = 1024   # recordings that are kept
RECORDED: dict[Hashable, Recording | None] = {}   # by pass and key; None for what is not to be repeated
UNDERWAY: Final = threading.local()   # `tape`: what this thread records
ALLOCATIONS: Final = ("aten::empty", "aten::zeros")
Maker = Callable[[Tensor], Tensor]   # of a tensor, on the device of the first one of a pass


class Recording(NamedTuple):
    """Makers of tensors, constants, and calls: a function and what picks its arguments from all of these."""

    makers: Sequence[Maker]
    constants: Sequence[Any]
    calls: Sequence[tuple[Callable[..., Any], Callable[[Sequence[Any]], Sequence[Any]]]]

    def repeat(self, tensors: Sequence[Any]) -> None:
        """Allocate and call as recorded, with these tensors in place of the first ones."""
        x = tensors[0]
        values = [*tensors, *[make(x) for make in self.makers], *self.constants]
        for function, pick in self.calls:
            function(*pick(values))


class Tape:
    """What is being recorded of a pass over some tensors, among them None."""

    def __init__(self, tensors: Sequence[Any]) -> None:
        given = [tensor for tensor in tensors if tensor is not None]
        self.tensors = list(tensors)   # kept alive, so that no other tensor gets the id of one
        self.slots = {id(tensor): slot for slot, tensor in enumerate(tensors) if tensor is not None}
        self.complete = len(self.slots) == len(given)   # else, one stands for two that may differ the next time
        self.makers: list[Maker] = []
        self.constants: list[Any] = []
        self.calls: list[tuple[Callable[..., Any], Callable[[Sequence[Any]], Sequence[Any]]]] = []

    def allocated(self, tensor: Tensor, maker: Maker) -> Tensor:
        """Note a new tensor, and return it."""
        self.makers.append(maker)
        self.slots[id(tensor)] = len(self.tensors)
        self.tensors.append(tensor)
        return tensor

    def called(self, function: Callable[..., Any], args: Sequence[Any]) -> None:
        """Note a call. A tensor stands for its latest maker: two makers may return one tensor now, and two later."""
        slots = []
        for arg in args:
            if not isinstance(arg, Tensor):
                self.constants.insert(0, arg)
                slots.append(-len(self.constants))   # counted from the end, for more tensors may come before them
            elif id(arg) in self.slots:
                slots.append(self.slots[id(arg)])
            else:
                self.complete = False
                return
        self.calls.append((function, itemgetter(*slots) if len(slots) > 1 else _picks_one(slots[0])))

    def recording(self) -> Recording | None:
        """The whole, if it can be repeated."""
        return Recording(self.makers, self.constants, self.calls) if self.complete else None


def _picks_one(slot: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    return lambda values: (values[slot],)


class _Watch(TorchDispatchMode):
    """Sees the operators that run beside what is noted."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tape = current()
        if tape is not None and not func._schema.name.startswith(ALLOCATIONS):
            tape.complete = False
        return func(*args, **(kwargs or {}))


def current() -> Tape | None:
    """What this thread records now."""
    return getattr(UNDERWAY, "tape", None)


def unwatched(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function whose operators do not spoil the recording, for the caller notes the call as a whole."""
    tape, UNDERWAY.tape = current(), None
    try:
        return function(*args, **options)
    finally:
        UNDERWAY.tape = tape


def allocated(make: Maker, x: Tensor) -> Tensor:
    """make(x), a tensor that the pass allocates, on the device of x."""
    tape = current()
    return make(x) if tape is None else tape.allocated(make(x), make)


def call(function: Callable[..., Any], *args: Any) -> None:
    """Call a function that writes into one of its arguments, and note that."""
    unwatched(function, *args)
    if tape := current():
        tape.called(function, args)


def run(key: Hashable, tensors: Sequence[Any], write: Callable[..., None], *args: Any) -> None:
    """Do write(*args), a pass over `tensors`, or repeat it.

    All else that it depends on must be in `key`. Under a user's dispatch or function mode nothing is recorded.
    """
    known = RECORDED.get(key)
    if known is not None:
        known.repeat(tensors)
    elif key in RECORDED or guard.in_mode():
        write(*args)
    else:
        UNDERWAY.tape = tape = Tape(tensors)
        try:
            with _Watch():
                write(*args)
        finally:
            UNDERWAY.tape = None
        if len(RECORDED) >= MOST:
            RECORDED.clear()
        RECORDED[key] = tape.recording()
