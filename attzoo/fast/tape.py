"""Record the launches of a forward or backward pass once, and repeat them for later calls.

The launches of a pass depend only on the shapes, strides, dtypes and alignment of its tensors, on its options and on
the device. Computing tiles, grids and allocations in Python takes several times as long as a small kernel runs.
Therefore the first pass over tensors of given shapes is recorded: the tensors that it allocates and the functions that
it calls, with their arguments. Later passes repeat the recording with their own tensors.

A pass is recorded only if it allocates with `allocated` and calls functions with `call` or `launch` of
triton/common.py, and does nothing else. A pass that uses another operator, or a view, runs in full each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops import guard

MAX_RECORDINGS: Final = 1024
RECORDED: dict[Hashable, Recording | None] = {}   # by key; None for passes that cannot be repeated
RECORDING_STATE: Final = threading.local()   # attribute `tape`: the recording in progress of this thread
ALLOCATIONS: Final = ("aten::empty", "aten::zeros")
Maker = Callable[[Tensor], Tensor]   # allocates a tensor on the device of its argument, the first tensor of the pass


class Recording(NamedTuple):
    """What a pass did: the tensors that it allocated, and the functions that it called.

    Attributes:
        makers: functions that allocate one tensor each.
        constants: arguments of calls that are not tensors.
        calls: for each call, the function, and a function that selects its arguments from a list of all values: the
            tensors of the pass, the allocated tensors and the constants.

    """

    makers: Sequence[Maker]
    constants: Sequence[Any]
    calls: Sequence[tuple[Callable[..., Any], Callable[[Sequence[Any]], Sequence[Any]]]]

    def repeat(self, tensors: Sequence[Any]) -> None:
        """Repeat the recorded allocations and calls with the tensors of another pass, in the same order."""
        x = tensors[0]
        values = [*tensors, *[allocate(x) for allocate in self.makers], *self.constants]
        for function, get_arguments in self.calls:
            function(*get_arguments(values))


class Tape:
    """A recording in progress of one pass over `tensors`, of which some may be None."""

    def __init__(self, tensors: Sequence[Any]) -> None:
        present_tensors = [tensor for tensor in tensors if tensor is not None]
        self.tensors = list(tensors)   # references, so that no id is used again
        self.slots = {id(tensor): slot for slot, tensor in enumerate(tensors) if tensor is not None}
        # A tensor that is passed twice may be two tensors in the next call.
        self.complete = len(self.slots) == len(present_tensors)
        self.makers: list[Maker] = []
        self.constants: list[Any] = []
        self.calls: list[tuple[Callable[..., Any], Callable[[Sequence[Any]], Sequence[Any]]]] = []

    def allocated(self, tensor: Tensor, allocate: Maker) -> Tensor:
        """Record that `allocate` made `tensor`, and return the tensor."""
        self.makers.append(allocate)
        self.slots[id(tensor)] = len(self.tensors)
        self.tensors.append(tensor)
        return tensor

    def called(self, function: Callable[..., Any], args: Sequence[Any]) -> None:
        """Record a call of a function with these arguments.

        A tensor stands for its latest allocation, as two allocations may return the same tensor now and different ones
        later.
        """
        slots = []
        for arg in args:
            if not isinstance(arg, Tensor):
                self.constants.insert(0, arg)
                slots.append(-len(self.constants))   # from the end, as more tensors may come before them
            elif id(arg) in self.slots:
                slots.append(self.slots[id(arg)])
            else:
                self.complete = False
                return
        self.calls.append((function, itemgetter(*slots) if len(slots) > 1 else _single_getter(slots[0])))

    def recording(self) -> Recording | None:
        """Return the finished recording; None if the pass cannot be repeated."""
        return Recording(self.makers, self.constants, self.calls) if self.complete else None


def _single_getter(slot: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Return a function that returns the tuple of one item, at index `slot`; `itemgetter` returns the item itself."""
    return lambda values: (values[slot],)


class _DetectOperators(TorchDispatchMode):
    """Mark the recording incomplete when an operator runs that is not an allocation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tape = current()
        if tape is not None and not func._schema.name.startswith(ALLOCATIONS):
            tape.complete = False
        return func(*args, **(kwargs or {}))


def current() -> Tape | None:
    """Return the recording in progress of this thread, or None."""
    return getattr(RECORDING_STATE, "tape", None)


def unwatched(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function without recording its operators; the caller records the call as a whole."""
    tape, RECORDING_STATE.tape = current(), None
    try:
        return function(*args, **options)
    finally:
        RECORDING_STATE.tape = tape


def allocated(make: Maker, x: Tensor) -> Tensor:
    """Return make(x), a new tensor on the device of x, and record the allocation if a recording is in progress."""
    tape = current()
    return make(x) if tape is None else tape.allocated(make(x), make)


def call(function: Callable[..., Any], *args: Any) -> None:
    """Call a function that writes into one of its arguments, and record the call if a recording is in progress."""
    unwatched(function, *args)
    if tape := current():
        tape.called(function, args)


def run(key: Hashable, tensors: Sequence[Any], write: Callable[..., None], *args: Any) -> None:
    """Call write(*args), a pass over `tensors`, or repeat its recording.

    `key` must contain everything on which the launches of the pass depend. Nothing is recorded while a
    TorchDispatchMode or TorchFunctionMode of the user is active.
    """
    recording = RECORDED.get(key)
    if recording is not None:
        recording.repeat(tensors)
    elif key in RECORDED or guard.in_mode():
        write(*args)
    else:
        RECORDING_STATE.tape = tape = Tape(tensors)
        try:
            with _DetectOperators():
                write(*args)
        finally:
            RECORDING_STATE.tape = None
        if len(RECORDED) >= MAX_RECORDINGS:
            RECORDED.clear()
        RECORDED[key] = tape.recording()
