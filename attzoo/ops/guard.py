"""Queries about the state of torch that need its private API or depend on its version.

This is the only file that uses private API of torch. Every function returns the same result with every version of
torch that pyproject.toml allows, except where a comment states otherwise.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Set
from typing import Any, Final

import torch
from torch import Tensor, nn

from .. import scope
from ..contract import is_older, require
from ..recording import is_idle

require("torch", torch.__version__, "2.6")   # torch.load of earlier versions can execute code from a file

from torch._subclasses import FakeTensor  # noqa: E402
from torch.utils._device import DeviceContext  # noqa: E402  (missing in versions that `require` refuses)

# Whether torch.export is tracing. torch 2.6 does not distinguish it from torch.compile, so compiling counts as
# exporting there: graphs made for export are valid for every size.
is_exporting: Final[Callable[[], bool]] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
# Whether torch.compile updates running statistics once in a checkpointed module; with torch 2.6 it updates them twice
compiles_checkpoints: Final = not is_older(torch.__version__, "2.11")
# Whether an exported program with max-pooling accepts only sizes of the parity that it was traced with. torch 2.11
# behaves so; 2.6, which does not check sizes, and 2.13 do not.
pool_ties_exports: Final = is_older("2.6.99", torch.__version__) and is_older(torch.__version__, "2.13")
# Whether vmap, grad or another transform of torch.func is active
in_transform: Final[Callable[[], bool]] = torch._C._are_functorch_transforms_active
# Whether a tensor was created by torch.autograd.grad(is_grads_batched=True)
is_batched_gradient: Final[Callable[[Tensor], bool]] = torch._C._functorch.is_legacy_batchedtensor
# Dictionaries of the hooks registered for all modules, by id
ALL_MODULES_HOOKS: Final = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
    nn.modules.module._global_backward_hooks,
    nn.modules.module._global_backward_pre_hooks,
)


PLAIN: Final = (Tensor, nn.Parameter)   # a subclass may override any operator
EXACT: Final = (torch.float32, torch.float64)   # dtypes that the fast CPU forms support
# Attributes of a convolution that decide what it computes
OPTIONS: Final = ("stride", "padding", "kernel_size", "dilation", "groups", "padding_mode")


def _store(name: str, value: Any) -> None:
    """Store a value by name in torch's thread-local state, which autograd copies to its worker threads."""
    references = sys.getrefcount(value)
    torch._C._stash_obj_in_tls(name, value)
    if sys.getrefcount(value) == references:   # torch <= 2.11 releases a reference that it never took
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _load(name: str) -> Any:
    """Return the value that `_store` stored by this name, or None."""
    return torch._C._get_obj_in_tls(name) if torch._C._is_key_in_tls(name) else None


scope.use_carrier(_store, _load)


def in_forward_derivative() -> bool:
    """Whether a level of torch.autograd.forward_ad is active."""
    return torch.autograd.forward_ad._current_level >= 0


def has_no_numbers(tensor: Tensor) -> bool:
    """Whether a tensor has no values to read: on the meta device, under FakeTensorMode, in torch.func or forward AD."""
    return tensor.is_meta or isinstance(tensor, FakeTensor) or in_transform() or in_forward_derivative()


def in_mode() -> bool:
    """Whether a TorchDispatchMode or TorchFunctionMode is active, which may save any intermediate tensor.

    The modes of `torch.device` and `torch.set_default_device` do not count: they only choose the device.
    """
    if torch._C._len_torch_dispatch_stack():
        return True
    if not torch._C._len_torch_function_stack():
        return False
    modes = torch.overrides._get_current_function_mode_stack()
    return any(type(mode) is not DeviceContext for mode in modes)


def is_plain(*tensors: Tensor) -> bool:
    """Whether the tensors are of no subclass and their operations run eagerly, outside graphs, transforms and modes."""
    return (
        not torch.compiler.is_compiling()           # a graph must be valid for all sizes, and the compiler fuses
        and not torch.jit.is_tracing()              # type: ignore[attr-defined]
        and not in_transform()                      # vmap, grad and other transforms decompose operators
        and not in_forward_derivative()             # fast forms do not implement it
        and not in_mode()                           # a mode may save intermediate tensors
        and all(type(x) in PLAIN for x in tensors)
    )


def is_traced() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace is tracing a graph."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())   # type: ignore[attr-defined]


def is_eager_on_cpu(*tensors: Tensor) -> bool:
    """Whether the tensors are plain, float32 or float64, on a CPU, and autocast is off."""
    return (
        is_plain(*tensors)
        and all(x.device.type == "cpu" and x.dtype in EXACT for x in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def is_dense(x: Tensor) -> bool:
    """Whether the memory of x has no gaps and is ordered channels first or channels last."""
    return x.is_contiguous() or (x.ndim > 2 and x.movedim(1, -1).is_contiguous())


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs hooks, registered on it or for all modules."""
    return _has_own_hooks(module) or any(ALL_MODULES_HOOKS)


def _has_own_hooks(module: nn.Module) -> bool:
    """Whether hooks are registered on the module itself."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks)


def forward_pre_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """Return the forward pre-hooks registered on the module itself."""
    return list(module._forward_pre_hooks.values())


def remove_forward_hook(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Remove a function from the forward hooks registered on the module itself."""
    for number in [n for n, function in module._forward_hooks.items() if function is hook]:
        del module._forward_hooks[number]


def is_unmodified(module: nn.Module, *kinds: type) -> bool:
    """Whether a module is of one of the classes `kinds`, not a subclass, and none of its methods is replaced.

    Methods are those that affect the output. They may be replaced on the instance or in its class. Names are looked up
    one by one, because torch.compile of 2.11 cannot trace a set.
    """
    attributes = module.__dict__
    on_instance = "forward" in attributes or "mlp" in attributes or "plain" in attributes or replaces_attention(module)
    return type(module) in kinds and not on_instance and not _replaced_in_class(type(module))


def _replaced_in_class(kind: type) -> bool:
    """Whether a method of a block's class was replaced since its definition. False while torch.compile traces."""
    if torch.compiler.is_compiling():
        return False
    own_methods = getattr(kind, "own_methods", {})
    return any(getattr(kind, name, None) is not method for name, method in own_methods.items())


def is_ordinary(module: nn.Module, *kinds: type) -> bool:
    """Whether a module is unmodified, as in `is_unmodified`, and calling it runs no hooks."""
    return is_unmodified(module, *kinds) and not has_hooks(module)


def replaces_attention(module: nn.Module) -> bool:
    """Whether `attention` is replaced on the instance, by the user or by `attention_maps` in this context.

    While torch.compile traces, every replacement counts.
    """
    attributes = module.__dict__
    return "attention" in attributes and (torch.compiler.is_compiling() or not is_idle(attributes["attention"]))


class Snapshot:
    """A record of the submodules and tensors of a module, for a cheap test of whether they have changed.

    It holds no reference to the module itself, so that it can be a value of a dictionary with weak keys.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parts = list(module.modules())[1:]
        self.tensors = [
            tensor for part in (module, *self.parts) for tensor in _tensors(part)
        ]   # so that no id is reused
        self.states = [_state(part) for part in (module, *self.parts)]

    def holds(self, module: nn.Module) -> bool:
        """Whether no submodule or tensor was replaced or converted since the record, and no submodule has a hook.

        module: the module that was recorded. The result is False also where `attention` of the module or of a submodule
        is replaced, because `attention_maps` may be recording.
        """
        parts = module, *self.parts
        return (
            not any(ALL_MODULES_HOOKS)
            and not any(map(_has_own_hooks, self.parts))
            and not any("attention" in part.__dict__ for part in parts)
            and all(_state(part) == state for part, state in zip(parts, self.states, strict=True))
        )


def _state(part: nn.Module) -> tuple[Any, ...]:
    """Return type, attribute names, children, tensor descriptions and convolution options of a module, to compare."""
    attributes = part.__dict__
    tensors = [tensor if tensor is None else _form(tensor) for tensor in _tensors(part)]
    options = [attributes[name] for name in OPTIONS] if "stride" in attributes else None
    return type(part), list(attributes), list(attributes["_modules"].values()), tensors, options


def _tensors(part: nn.Module) -> list[Tensor | None]:
    """Return the parameters and buffers of a module, without its submodules; None for one that is not set."""
    attributes = part.__dict__
    return [*attributes["_parameters"].values(), *attributes["_buffers"].values()]


def _form(t: Tensor) -> tuple[Any, ...]:
    """Return id, type, shape, dtype and device of a tensor: assigning `.data` may change all but the id."""
    return id(t), type(t), t.shape, t.dtype, t.device


def parameter_names(module: nn.Module) -> Set[str]:
    """Return the names of a module's own parameters, including those that are None."""
    return module._parameters.keys()


def own_tensors(module: Any) -> list[Tensor]:
    """Return a module's own parameters and floating-point buffers, without the tensors of its submodules."""
    parameters = [tensor for tensor in module._parameters.values() if tensor is not None]
    return parameters + [
        tensor for tensor in module._buffers.values() if tensor is not None and tensor.is_floating_point()
    ]
