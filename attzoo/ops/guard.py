"""Questions about torch that only its private parts answer, or that torch's versions answer differently.

The only file that touches private parts of torch. Every function gives the same answer with every torch that
pyproject.toml allows, but for what is noted beside it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Set
from typing import Any, Final

import torch
from torch import Tensor, nn

from .. import scope
from ..contract import older, require
from ..recording import is_idle

require("torch", torch.__version__, "2.6")   # before it, torch.load could be made to run code

from torch._subclasses import FakeTensor  # noqa: E402
from torch.utils._device import DeviceContext  # noqa: E402  (an older torch may not have it)

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


PLAIN: Final = (Tensor, nn.Parameter)   # a subclass of these may give any operator a meaning of its own
EXACT: Final = (torch.float32, torch.float64)   # dtypes that the forms for CPUs compute in
# Attributes of a convolution that decide what it computes
OPTIONS: Final = ("stride", "padding", "kernel_size", "dilation", "groups", "padding_mode")


def _store(name: str, value: Any) -> None:
    references = sys.getrefcount(value)
    torch._C._stash_obj_in_tls(name, value)
    if sys.getrefcount(value) == references:   # torch up to 2.11 forgets to count its own, and drops it all the same
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _load(name: str) -> Any:
    return torch._C._get_obj_in_tls(name) if torch._C._is_key_in_tls(name) else None


scope.use_carrier(_store, _load)   # which autograd hands over to the threads that it starts


def in_forward_derivative() -> bool:
    """Whether a level of torch.autograd.forward_ad is active."""
    return torch.autograd.forward_ad._current_level >= 0


def has_no_numbers(tensor: Tensor) -> bool:
    """Whether a tensor only stands for numbers: on the meta device, under FakeTensorMode, or in a transform."""
    return tensor.is_meta or isinstance(tensor, FakeTensor) or in_transform() or in_forward_derivative()


def in_mode() -> bool:
    """Whether a TorchDispatchMode or a TorchFunctionMode is active, which sees every operation and may keep any tensor.

    Those of `torch.device` and torch.set_default_device, which only choose devices, do not count.
    """
    if torch._C._len_torch_dispatch_stack():
        return True
    if not torch._C._len_torch_function_stack():
        return False
    modes = torch.overrides._get_current_function_mode_stack()
    return any(type(mode) is not DeviceContext for mode in modes)


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors and operations on them run now: no graph, transform or mode sees them."""
    return (
        not torch.compiler.is_compiling()           # a graph is for all sizes, and its compiler fuses by itself
        and not torch.jit.is_tracing()              # type: ignore[attr-defined]
        and not in_transform()                      # vmap, grad and their like take operators apart
        and not in_forward_derivative()             # fast forms have none
        and not in_mode()                           # a mode may save what is computed, to use it later
        and all(type(x) in PLAIN for x in tensors)
    )


def is_eager_on_cpu(*tensors: Tensor) -> bool:
    """Whether these are plain tensors of float32 or float64 on a CPU, and autocast does not change their dtype."""
    return (
        is_plain(*tensors)
        and all(x.device.type == "cpu" and x.dtype in EXACT for x in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def is_dense(x: Tensor) -> bool:
    """Whether x lies in memory without gaps, channels first or channels last."""
    return x.is_contiguous() or (x.ndim > 2 and x.movedim(1, -1).is_contiguous())


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module would run hooks: its own, or those registered for all modules."""
    return _has_own_hooks(module) or any(ALL_MODULES_HOOKS)


def _has_own_hooks(module: nn.Module) -> bool:
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own)


def forward_pre_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """What runs before every call of the module, registered for it alone."""
    return list(module._forward_pre_hooks.values())


def is_unmodified(module: nn.Module, *kinds: type) -> bool:
    """Whether a module does what its class, one of `kinds`, does: it is of no subclass, and no method is replaced.

    Names are looked up one by one: torch.compile of 2.11 traces no set of them.
    """
    own = module.__dict__
    return type(module) in kinds and "forward" not in own and "mlp" not in own and not replaces_attention(module)


def is_ordinary(module: nn.Module, *kinds: type) -> bool:
    """Whether a call of the module does what its class, one of `kinds`, does, and no hook sees what it is given."""
    return is_unmodified(module, *kinds) and not has_hooks(module)


def replaces_attention(module: nn.Module) -> bool:
    """Whether an instance has an `attention` of its own: its owner's, or that of attention_maps in this context."""
    own = module.__dict__
    return "attention" in own and (torch.compiler.is_compiling() or not is_idle(own["attention"]))


class Snapshot:
    """What a module is made of, to see at little cost whether that is still so.

    It holds parts and tensors of the module, but not the module itself, which may be a weak key of it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parts = list(module.modules())[1:]
        self.tensors = [t for part in (module, *self.parts) for t in _tensors(part)]   # alive: an id stays one tensor's
        self.seen = [_seen(part) for part in (module, *self.parts)]

    def holds(self, module: nn.Module) -> bool:
        """Whether nothing was exchanged, replaced or converted since, and no part has a hook.

        Nor may an `attention` be replaced: attention_maps may record in this context, and not in another.
        """
        parts = module, *self.parts
        return (
            not any(ALL_MODULES_HOOKS)
            and not any(map(_has_own_hooks, self.parts))
            and not any("attention" in part.__dict__ for part in parts)
            and all(_seen(part) == seen for part, seen in zip(parts, self.seen, strict=True))
        )


def _seen(part: nn.Module) -> tuple[Any, ...]:
    """Type, names of attributes, children, which tensors and of what form, and a convolution's options."""
    own = part.__dict__
    tensors = [t if t is None else _form(t) for t in _tensors(part)]
    options = [own[name] for name in OPTIONS] if "stride" in own else None
    return type(part), list(own), list(own["_modules"].values()), tensors, options


def _tensors(part: nn.Module) -> list[Tensor | None]:
    own = part.__dict__
    return [*own["_parameters"].values(), *own["_buffers"].values()]


def _form(t: Tensor) -> tuple[Any, ...]:
    # an assignment to .data, or swap_tensors, changes all but the identity in place
    return id(t), type(t), t.shape, t.dtype, t.device


def parameter_names(module: nn.Module) -> Set[str]:
    """The names of a module's own parameters, those that are None among them."""
    return module._parameters.keys()


def own_tensors(module: Any) -> list[Tensor]:
    """A module's own parameters and floating-point buffers, without those of modules in it."""
    parameters = [t for t in module._parameters.values() if t is not None]
    return parameters + [t for t in module._buffers.values() if t is not None and t.is_floating_point()]
