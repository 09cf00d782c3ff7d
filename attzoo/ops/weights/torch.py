"""Find and initialise the weights of a block in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...contract import Weight
from ..common.torch import upcast


def find(module: nn.Module, name: str) -> Tensor:
    """Return the tensor with canonical `name`, such as "channel.excite.weight".

    Canonical names are the keys of a spec's `weights`. Their "mean" and "var" are running_mean and running_var here.

    Raises ValueError for a network whose norms are folded, and AttributeError if there is no such tensor.
    """
    path, _, leaf = name.rpartition(".")
    if getattr(module, "fused", False):
        got = "got the copy that fold_norms() returned: pass the network on which fold_norms() was called"
        raise ValueError(f"expected a network with batch norms, to find {name}, {got}")
    part = module.get_submodule(path)
    return getattr(part, {"mean": "running_mean", "var": "running_var"}.get(leaf, leaf))


@torch.no_grad()
def initialize(tensor: Tensor, weight: Weight) -> None:
    """Initialise a tensor in place as its `Weight` says; do nothing on the meta device."""
    if tensor.is_meta:
        return
    if weight.initialization == "uniform":
        tensor.uniform_(weight.center - weight.scale, weight.center + weight.scale)
    elif weight.initialization == "normal":
        tensor.normal_(weight.center, weight.scale)
    elif weight.initialization == "orthogonal":
        values = upcast(tensor)   # QR decomposition lacks half precision
        tensor.copy_(nn.init.orthogonal_(values, weight.scale))
    else:
        tensor.fill_(weight.center)
