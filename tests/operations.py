"""What torch does while one looks: the operations, and the tensors that they make; backward passes included."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """Notes the name of every operation."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Large(TorchDispatchMode):
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
