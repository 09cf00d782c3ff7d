"""Questions about torch that only its private parts answer, or that torch's versions answer differently.

The only file that touches private parts of torch. Every function gives the same answer with every torch that
pyproject.toml allows, but for what is noted beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..contract import older, require

require("torch", torch.__version__, "2.6")   # before it, torch.load could be made to run code

# Whether torch.export traces. torch 2.6 tells compiling from exporting nowhere: there, compiling counts as exporting,
# whose graphs are right for every size.
is_exporting: Final[Callable[[], bool]] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
# Whether torch.compile runs a checkpoint's running statistics once: compiled by torch 2.6 they moved twice
compiles_checkpoints: Final = not older(torch.__version__, "2.11")
# Whether an exported program that pools is tied to whether sizes are odd, in any module: so with torch 2.11, not with
# 2.6, which checks no sizes, nor with 2.13
pool_ties_exports: Final = older("2.6.99", torch.__version__) and older(torch.__version__, "2.13")
# Whether vmap, grad or another transform of torch.func is active
in_transform: Final[Callable[[], bool]] = torch._C._are_functorch_transforms_active
# Whether a tensor is one of those that torch.autograd.grad(is_grads_batched=True) makes
is_batched_gradient: Final[Callable[[Tensor], bool]] = torch._C._functorch.is_legacy_batchedtensor
# Hooks registered for all modules, by their ids
ALL_MODULES_HOOKS: Final = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
    nn.modules.module._global_backward_hooks,
    nn.modules.module._global_backward_pre_hooks,
)


def in_forward_derivative() -> bool:
    """Whether a level of torch.autograd.forward_ad is active."""
    return torch.autograd.forward_ad._current_level >= 0


def in_dispatch_mode() -> bool:
    """Whether a TorchDispatchMode is active, which sees every operation and may keep any tensor."""
    return torch.utils._python_dispatch._get_current_dispatch_mode() is not None


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module would run hooks: its own, or those registered for all modules."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or any(ALL_MODULES_HOOKS)


def forward_pre_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """What runs before every call of the module, registered for it alone."""
    return list(module._forward_pre_hooks.values())


def is_unmodified(module: nn.Module, *kinds: type) -> bool:
    """Whether a module does what its class, one of `kinds`, does: it is of no subclass, and no method is replaced.

    attzoo.maps replaces `attention`. Names are looked up one by one: torch.compile of 2.11 traces no set of them.
    """
    own = module.__dict__
    return type(module) in kinds and "attention" not in own and "forward" not in own and "mlp" not in own


def parameter_names(module: nn.Module) -> Set[str]:
    """The names of a module's own parameters, those that are None among them."""
    return module._parameters.keys()


def own_tensors(module: Any) -> list[Tensor]:
    """A module's own parameters and floating-point buffers, without those of modules in it."""
    parameters = [t for t in module._parameters.values() if t is not None]
    return parameters + [t for t in module._buffers.values() if t is not None and t.is_floating_point()]
