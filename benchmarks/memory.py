"""Count the bytes of tensors that a pass through a torch module saves, needs, reads and writes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attzoo.ops import guard

from .timer import Call


def saved_bytes(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Return the bytes that autograd saves for the backward pass, without inputs, parameters and buffers."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    addresses = {tensor.untyped_storage().data_ptr() for tensor in [*inputs, *module.parameters(), *module.buffers()]}
    saved_tensors: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        """Record a tensor that autograd saves, and return it."""
        saved_tensors.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(*inputs)
    new_tensors = [tensor for address, tensor in saved_tensors.items() if address not in addresses]
    return sum(tensor.untyped_storage().nbytes() for tensor in new_tensors)


def peak_bytes(call: Call) -> int:
    """Return the peak bytes of tensors created during a call, without temporary memory inside operators."""
    tracker = _Alive()
    with _counting(tracker):
        call()
    return tracker.most


def operator_bytes(call: Call) -> int:
    """Return the bytes that the operators of a call read and write, as if none of them were in a cache.

    Every operator counts each tensor that it takes as read and each tensor that it returns or changes as written. Views
    and new uninitialised tensors count 0 bytes, and an expanded tensor has the bytes of the tensor that it repeats.
    """
    counter = _Traffic()
    with _counting(counter):
        call()
    return counter.total


@contextmanager
def _counting(mode: TorchDispatchMode) -> Iterator[None]:
    """Activate a mode, with attzoo's blocks in the forms that are timed: in a mode they would use the plain forms."""
    with patch.object(guard, "in_mode", lambda: False), mode:
        yield


OVERWRITING: Final = ("copy_", "fill_", "zero_")   # these change their first argument without reading it
WITHOUT_VALUES: Final = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class _Traffic(TorchDispatchMode):   # type: ignore[no-untyped-call]
    """Add up the bytes that operators read and write."""

    def __init__(self) -> None:
        super().__init__()   # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in WITHOUT_VALUES:
            self.total += _bytes_of(func, args, kwargs or {}, out)
        return out


def _bytes_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Return the bytes that an operator reads and writes, given its arguments and what it returned.

    It reads each tensor among its arguments once, except those that it only overwrites. It writes each tensor that it
    changes or newly returns. A view is neither, so an operator that only returns views has 0 bytes.
    """
    arguments = func._schema.arguments
    positional, named = zip(arguments, args, strict=False), ((a, kwargs[a.name]) for a in arguments if a.name in kwargs)
    taken: list[Tensor] = []
    changed: list[Tensor] = []
    unread: list[Tensor] = []   # changed and not read
    for argument, value in (*positional, *named):
        tensors = _tensors(value)
        taken += tensors
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed += tensors
            unread += tensors if argument.is_out or func.overloadpacket.__name__ in OVERWRITING else []
    addresses = {tensor.untyped_storage()._cdata for tensor in taken}
    new = [tensor for tensor in _tensors(out) if tensor.untyped_storage()._cdata not in addresses]
    if not new and not changed:
        return 0
    overwritten = set(map(id, unread))
    read = {id(tensor): tensor for tensor in taken if id(tensor) not in overwritten}
    return sum(map(_stored_bytes, [*read.values(), *changed, *new]))


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors in nested values."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _stored_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor in memory: an axis with stride 0 repeats the same values."""
    axes: Iterable[tuple[int, int]] = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size if stride or not size else 1 for size, stride in axes)


class _Alive(TorchDispatchMode):   # type: ignore[no-untyped-call]
    """Count the bytes of storage of each tensor that an operator returns, until it is freed."""

    def __init__(self) -> None:
        super().__init__()   # type: ignore[no-untyped-call]
        self.current = 0
        self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count the storage that it allocates."""
        for storage in self._new((args, kwargs)):   # created before the call: views of it do not count
            weakref.finalize(storage, self._freed, storage._cdata, 0)
        out = func(*args, **(kwargs or {}))
        for storage in self._new(out):
            self.current += storage.nbytes()
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.current)
        return out

    def _new(self, tree: Any) -> Iterator[torch.UntypedStorage]:
        """Yield the storages of tensors in nested values that were not seen before."""
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self.known.add(tensor.untyped_storage()._cdata)
                yield tensor.untyped_storage()

    def _freed(self, key: int, size: int) -> None:
        """Forget the storage `key` of `size` bytes, which was freed."""
        self.known.discard(key)
        self.current -= size
