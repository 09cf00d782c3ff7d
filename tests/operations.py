"""Record the operations that torch runs and the tensors that they return, in forward and backward passes."""

from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attzoo.ops import guard


class Observer(TorchDispatchMode):
    """A dispatch mode that blocks do not detect. In other modes they compute the plain form."""

    def __enter__(self):
        self.patch = patch.object(guard, "in_mode", lambda: False)
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.stop()
        super().__exit__(*error)


class Operations(Observer):
    """Record the name of every operation in `names`."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Large(Observer):
    """Record in `made` the tensors of at least the size of x that operations return, by address."""

    def __init__(self, x):
        super().__init__()
        self.size, self.made = x.nbytes, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.size:
                self.made[tensor.untyped_storage().data_ptr()] = tensor
        return out


def save_copy(saved, tensor):
    """Append a floating-point tensor and a copy of it to a list; ignore other values."""
    if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
        saved.append((tensor, tensor.detach().clone()))


def assert_unchanged(saved):
    """Assert that the tensors in a list of `save_copy` still equal their copies, and that there are some."""
    assert saved
    assert all(torch.equal(tensor, copy) for tensor, copy in saved)


def saving_hook(saved):
    """Return a forward hook that calls `save_copy` with the outputs of modules."""
    return lambda module, args, output: save_copy(saved, output)


class SaveCalls(TorchFunctionMode):
    """Call `save_copy` with the results of all torch functions; the list is `saved`."""

    def __init__(self):
        super().__init__()
        self.saved = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        save_copy(self.saved, out)
        return out


class SaveOperations(TorchDispatchMode):
    """Call `save_copy` with the results of all operations; the list is `saved`."""

    def __init__(self):
        super().__init__()
        self.saved = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        save_copy(self.saved, out)
        return out
