"""Count the bytes of tensors that a pass through a torch module saves and needs."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    with tracker:
        call()
    return tracker.most


class _Alive(TorchDispatchMode):   # type: ignore[no-untyped-call]
    """Count the bytes of storage of each tensor that an operator returns, until it is freed."""

    def __init__(self) -> None:
        super().__init__()   # type: ignore[no-untyped-call]
        self.current = 0
        self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
