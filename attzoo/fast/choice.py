"""Select the implementation that computes a call of a block: fused kernels, the form for CPUs, or the plain form.

The plain form consists of operations of torch. Fused kernels are Triton kernels that each do the work of several such
operations. The form for CPUs uses operations of torch with fewer passes over memory.

A block declares its implementations: `triton_form` returns the module of its kernels, `cpu_form` is a `CpuForm`, and
`parts` names the blocks inside it. This module does not import Triton; kernels are imported when they are selected.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from math import prod
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import settings
from ..contract import is_older
from ..extras import missing
from ..ops import guard
from ..ops.torch import BATCH_NORM, CONV
from .wins import MIN_ELEMENTS

DTYPES: Final = {torch.float32, torch.float16, torch.bfloat16}   # supported by the kernels
CAPABILITY: Final = (8, 0)   # the first GPUs with bfloat16
LONGEST: Final = 1 << 31     # limit of the elements of a sample and of N * C, which kernels count in 32 bits
CONVS: Final = tuple(CONV.values())
NORMS: Final = tuple(BATCH_NORM.values())
OLDEST: Final = "3.6"        # oldest Triton that the kernels were compiled with
OLDEST_TORCH: Final = "2.11"   # oldest PyTorch tested with that Triton, which torch.compile of 2.6 cannot import
ABSENT: Final = find_spec("triton") is None
# Nightly builds are distributed under another name.
TRITON: Final = next((package.version for package in distributions(name="triton")), OLDEST)
EARLY_TRITON: Final = is_older(TRITON, OLDEST)
EARLY_TORCH: Final = is_older(torch.__version__, OLDEST_TORCH)
INTERPRETED: Final = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
LEAVES: Final = (nn.Linear, nn.Identity, *NORMS)
# Blocks that `kernels_refusal` accepted, with a snapshot of each block and the signatures of its inputs
CHECKED: WeakKeyDictionary[nn.Module, tuple[guard.Snapshot, list[Any]]] = WeakKeyDictionary()
# attributes: `plain`, this thread runs a plain form; `in_graph`, it runs an operator of a graph
THREAD_STATE = threading.local()
_is_tracing: Final[Callable[[], bool]] = torch.jit.is_tracing   # type: ignore[attr-defined]


@dataclass(frozen=True)
class CpuForm:
    """A block's form for CPUs.

    compute: compute(block, *inputs) returns the output of the block.
    may_compute: may_compute(block, *inputs) returns whether `compute` is valid and worth its overhead.
    """

    may_compute: Callable[..., bool]
    compute: Callable[..., Tensor]


def should_use_cpu_form(block: Any, *inputs: Tensor) -> bool:
    """Whether a block uses its form for CPUs with these inputs; otherwise it uses its plain form."""
    return (
        not torch.compiler.is_compiling()       # first, because torch.compile of 2.6 cannot trace access to a CpuForm
        and block.cpu_form is not None
        and block.has_own_forms
        and guard.is_eager_on_cpu(*inputs)      # checked before sizes, which a trace would record
        and guard.is_dense(inputs[0])
        and block.cpu_form.may_compute(block, *inputs)
        and guard.is_unmodified(block, type(block))
    )


# ---- fused kernels ---------------------------------------------------------------------------------------------------


def should_use_kernels(block: Any, *inputs: Tensor) -> bool:
    """Whether a block uses its fused kernels with these inputs, under the current setting of `attzoo.kernels`.

    Raises:
        RuntimeError: under `kernels("triton")`, if the kernels cannot compute this call.

    """
    if settings.chosen == "eager":
        return False
    if settings.chosen == "auto":
        is_program = guard.is_exporting() or not isinstance(inputs[0], Tensor)   # may be run with inputs of any size
        if is_program or not has_recorded_win(type(block), inputs[0]):
            return False
    if not torch.compiler.is_compiling():
        if getattr(THREAD_STATE, "plain", False):
            return False
        if is_known_to_pass(block, inputs):
            return True
    reason = kernels_refusal(block, inputs)
    if not reason and not torch.compiler.is_compiling():
        CHECKED[block] = guard.Snapshot(block), [_signature(x) for x in inputs]
    if reason and settings.chosen == "triton":
        required = f'kernels("triton") requires the fused kernels of {type(block).__name__}'
        raise RuntimeError(f'{required}, but {reason}; with kernels("auto") this call runs without them')
    return not reason


def is_known_to_pass(block: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether `kernels_refusal` has accepted this block with inputs like these, and nothing has changed since."""
    checked = CHECKED.get(block)
    return (
        checked is not None
        and checked[1] == [_signature(x) for x in inputs]
        and checked[0].holds(block)
        and not (_is_tracing() or guard.in_transform() or guard.in_forward_derivative())
    )


def _signature(x: Tensor) -> tuple[Any, ...]:
    """Return type, shape, dtype and device of an input, on which the result of `kernels_refusal` depends."""
    return type(x), x.shape, x.dtype, x.device


def has_recorded_win(kind: type, x: Tensor) -> bool:
    """Whether the kernels of block class `kind` were faster in a measurement in wins.py with an input like x."""
    if not MIN_ELEMENTS or not x.is_cuda:
        return False
    dtype = str(x.dtype).removeprefix("torch.")
    case = kind.__name__, capability(x.device), dtype, not x.is_contiguous(), torch.is_grad_enabled()
    return case in MIN_ELEMENTS and x.numel() >= MIN_ELEMENTS[case]


def unavailable() -> str | None:
    """Return why the installed software cannot run any kernels, as the end of an error message; None if it can."""
    if ABSENT:
        return missing("triton", "triton", "a kernel")
    if EARLY_TORCH:
        return f"the kernels need PyTorch {OLDEST_TORCH} or later, got {torch.__version__}"
    if EARLY_TRITON:
        return f"the kernels need Triton {OLDEST} or later, got {TRITON}"
    return "the kernels are for NVIDIA GPUs, got PyTorch for AMD GPUs" if torch.version.hip else None


def kernels_refusal(block: Any, inputs: Sequence[Tensor]) -> str | None:
    """Return why the kernels of a block cannot compute with these inputs, as the end of an error; None if they can."""
    return (
        unavailable()
        or _refusal_of_tensors(block, inputs)
        or _refusal_of_modules(block)
        or _refusal_of_context(block, inputs)
        or _refusal_of_block(block, inputs)
    )


def _refusal_of_tensors(block: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """Return why devices, dtypes or sizes of inputs and weights are not supported, for an error; None if they are."""
    if not all(isinstance(x, Tensor) for x in inputs):
        return f"torch.fx cannot trace the kernels, and passes {type(inputs[0]).__name__} as input"
    device, tensors = inputs[0].device, _tensors(block, inputs)
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"the kernels need inputs on a CUDA device, got an input on {device}"
    if len(devices := {tensor.device for tensor in tensors}) > 1:
        return f"inputs and weights must be on one device, got {', '.join(sorted(map(str, devices)))}"
    if not (dtypes := {tensor.dtype for tensor in tensors}) <= DTYPES:
        return f"the kernels support float32, float16 and bfloat16, got {', '.join(sorted(map(str, dtypes)))}"
    if any(x.dtype != inputs[0].dtype for x in inputs):
        return f"all inputs must have one dtype, got {', '.join(str(x.dtype) for x in inputs)}"
    if any(max(prod(x.shape[1:]), prod(x.shape[:2])) >= LONGEST for x in inputs):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        return f"a sample must have fewer than 2^31 elements, and N * C must be less than 2^31, got shapes {shapes}"
    return None


def _tensors(block: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the inputs, and the parameters and floating-point buffers of the block."""
    return [*inputs, *(tensor for part in block.modules() for tensor in guard.own_tensors(part))]


def _refusal_of_modules(block: Any) -> str | None:
    """Return why a method, layer or hook of the block is not supported, for an error; None if all are."""
    parts = [getattr(block, name) for name in block.parts]
    if not block.has_own_forms or any(
        type(part) is not kind for part, kind in zip(parts, block.parts.values(), strict=True)
    ):
        return "the block or a block inside it is of a subclass, whose changes the kernels would ignore"
    checked_parts = [block, *parts]
    if not all(guard.is_unmodified(part, type(part)) for part in checked_parts):
        return "a method of the block is replaced, as attention_maps replaces attention"
    modules = list(block.modules())
    layers = [module for module in modules if not any(module is part for part in checked_parts)]
    if not all(_has_standard_options(layer, block) for layer in layers):
        return "a layer of the block differs from the one that its class creates"
    if any(guard.has_hooks(part) for part in modules[1:]):
        return "a layer of the block has a hook, which the kernels would not call"
    return None


def _has_standard_options(part: Any, block: Any) -> bool:
    """Whether a layer `part` of a block computes what the kernels compute from the layer's weight and bias."""
    if not isinstance(part, nn.Identity) and not guard.parameter_names(part) >= {"weight", "bias"}:
        return False   # computed from other parameters, as by a parametrization
    if type(part) in CONVS:
        keeps_size = set(part.stride) == {1} and part.padding == tuple(k // 2 for k in part.kernel_size)
        is_patchwise = part.stride == part.kernel_size and not any(part.padding)
        plain = part.groups == 1 and set(part.dilation) == {1}
        mode = part.padding_mode == getattr(block.spec, "padding", "zeros")
        return plain and mode and (keeps_size or is_patchwise)
    return type(part) in LEAVES and (type(part) not in NORMS or bool(part.affine))


def _refusal_of_context(block: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """Return why kernels cannot be called now, for an error; None if they can.

    GPU, tracing, transforms and types of tensors are checked; nothing is checked while torch.compile traces.
    """
    if torch.compiler.is_compiling():
        return None
    device = inputs[0].device
    if device.type == "cuda" and capability(device) < CAPABILITY:
        got = ".".join(map(str, capability(device)))
        return f"the kernels need a GPU of compute capability 8.0 or later, got {got}"
    if _is_tracing():
        return "torch.jit.trace cannot trace the kernels"
    if guard.in_transform() or guard.in_forward_derivative():
        return "the kernels do not support torch.func transforms and forward-mode derivatives"
    if not (kinds := {type(tensor) for tensor in _tensors(block, inputs)}).issubset(guard.PLAIN):
        return f"the kernels need plain tensors, got {', '.join(sorted(kind.__name__ for kind in kinds))}"
    return None


def _refusal_of_block(block: Any, inputs: Sequence[Tensor]) -> str | None:
    """Return the result of `refusal(block, *inputs)` of the module of the block's kernels; None if it has none."""
    refusal = getattr(block.triton_form(), "refusal", None)
    return refusal(block, *inputs) if refusal else None


def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU, for example (9, 0) for an H100."""
    return _properties(device) if torch.compiler.is_compiling() else _cached_properties(device)


def _properties(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU as torch reports it, without the cache of `capability`."""
    properties = torch.cuda.get_device_properties(device)   # a constant to torch.compile
    return properties.major, properties.minor


_cached_properties = cache(_properties)
