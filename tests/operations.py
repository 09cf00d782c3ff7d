"""What torch does while one looks: the operations, and the tensors that they make; backward passes included."""

from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attzoo.ops import guard


class Observer(TorchDispatchMode):
    """A mode for whose sake nothing is computed otherwise: blocks take it for none."""

    def __enter__(self):
        self.unseen = patch.object(guard, "in_mode", lambda: False)
        self.unseen.start()
        return super().__enter__()

    def __exit__(self, *error):
        self.unseen.stop()
        super().__exit__(*error)


class Operations(Observer):
    """Notes the name of every operation."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Large(Observer):
    """Keeps every tensor that an operation makes and that is as large as x."""

    def __init__(self, x):
        super().__init__()
        self.size, self.made = x.nbytes, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.size:
                self.made[tensor.untyped_storage().data_ptr()] = tensor
        return out


def keep(kept, tensor):
    """Keep a tensor, and what it is now."""
    if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
        kept.append((tensor, tensor.detach().clone()))


def assert_untouched(kept):
    """Every tensor that was kept is what it was then."""
    assert kept
    assert all(torch.equal(tensor, then) for tensor, then in kept)


def hook_into(kept):
    """A forward hook that keeps what modules return."""
    return lambda module, args, output: keep(kept, output)


class KeepsCalls(TorchFunctionMode):
    """Keeps what every function of torch returns, and what it was then."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        keep(self.kept, out)
        return out


class KeepsOperations(TorchDispatchMode):
    """Keeps what every operation returns, and what it was then."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        keep(self.kept, out)
        return out
