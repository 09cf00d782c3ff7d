"""Select the implementation that computes a call of a block: fused kernels, the form for CPUs, or the plain form.

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
from .wins import LEAST

DTYPES: Final = {torch.float32, torch.float16, torch.bfloat16}   # supported by the kernels
CAPABILITY: Final = (8, 0)   # the first GPUs with bfloat16
LONGEST: Final = 1 << 31     # elements of a sample, or N * C: kernels count these in 32 bits
CONVS: Final = tuple(CONV.values())
NORMS: Final = tuple(BATCH_NORM.values())
OLDEST: Final = "3.6"        # oldest Triton that the kernels were compiled with
OLDEST_TORCH: Final = "2.11"   # oldest PyTorch tested with it; torch.compile of 2.6 cannot import it
ABSENT: Final = find_spec("triton") is None
TRITON: Final = next((d.version for d in distributions(name="triton")), OLDEST)   # nightlies have another name
EARLY: Final = is_older(TRITON, OLDEST)
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
    """A block's form for CPUs: `compute(block, *inputs)`, valid if `may_compute(block, *inputs)` is true."""

    may_compute: Callable[..., bool]
    compute: Callable[..., Tensor]


def should_use_cpu_form(block: Any, *inputs: Tensor) -> bool:
    """Whether a block uses its form for CPUs with these inputs; otherwise it uses its plain form."""
    return (
        not torch.compiler.is_compiling()       # asked first: torch 2.6 traces no attribute that holds such an object
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
        is_program = guard.is_exporting() or not isinstance(inputs[0], Tensor)   # used for inputs of any size
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
        asked = f'kernels("triton") asks for a fused {type(block).__name__}'
        raise RuntimeError(f'{asked}, but {reason}; kernels("auto") has the plain form')
    return not reason


def is_known_to_pass(block: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether `kernels_refusal` accepted this block with such inputs, and nothing has changed since."""
    checked = CHECKED.get(block)
    return (
        checked is not None
        and checked[1] == [_signature(x) for x in inputs]
        and checked[0].holds(block)
        and not (_is_tracing() or guard.in_transform() or guard.in_forward_derivative())
    )


def _signature(x: Tensor) -> tuple[Any, ...]:
    """Return the properties of an input that `kernels_refusal` depends on."""
    return type(x), x.shape, x.dtype, x.device


def has_recorded_win(kind: type, x: Tensor) -> bool:
    """Whether the kernels of this class of block were faster in a recorded measurement with an input like x."""
    if not LEAST or not x.is_cuda:
        return False
    dtype = str(x.dtype).removeprefix("torch.")
    case = kind.__name__, capability(x.device), dtype, not x.is_contiguous(), torch.is_grad_enabled()
    return case in LEAST and x.numel() >= LEAST[case]


def unavailable() -> str | None:
    """Return why the installed software cannot run any kernels; None if it can."""
    if ABSENT:
        return missing("triton", "triton", "a kernel")
    if EARLY_TORCH:
        return f"its kernels take PyTorch {OLDEST_TORCH} or later, got {torch.__version__}"
    if EARLY:
        return f"its kernels take Triton {OLDEST} or later, got {TRITON}"
    return "its kernels are for NVIDIA GPUs" if torch.version.hip else None


def kernels_refusal(block: Any, inputs: Sequence[Tensor]) -> str | None:
    """Return why the kernels of a block cannot compute with these inputs; None if they can."""
    return (
        unavailable()
        or _refusal_of_tensors(block, inputs)
        or _refusal_of_modules(block)
        or _refusal_of_context(block, inputs)
        or _refusal_of_block(block, inputs)
    )


def _refusal_of_tensors(block: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """Return why the devices, dtypes or sizes are not supported; None if they are."""
    if not all(isinstance(x, Tensor) for x in inputs):
        return f"torch.fx would not see what it does, and passes {type(inputs[0]).__name__}"
    device, tensors = inputs[0].device, _tensors(block, inputs)
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"its kernels run on a CUDA device, and the input is on {device}"
    if len(devices := {t.device for t in tensors}) > 1:
        return f"its tensors are on several devices, {', '.join(sorted(map(str, devices)))}"
    if not (dtypes := {t.dtype for t in tensors}) <= DTYPES:
        return f"it takes float32, float16 and bfloat16, got {', '.join(sorted(map(str, dtypes)))}"
    if any(x.dtype != inputs[0].dtype for x in inputs):
        return f"it takes inputs of one dtype, got {', '.join(str(x.dtype) for x in inputs)}"
    if any(max(prod(x.shape[1:]), prod(x.shape[:2])) >= LONGEST for x in inputs):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        return f"it takes fewer than 2^31 numbers in a sample, and channels in a batch, got shapes {shapes}"
    return None


def _tensors(block: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the inputs, parameters and buffers."""
    return [*inputs, *(t for part in block.modules() for t in guard.own_tensors(part))]


def _refusal_of_modules(block: Any) -> str | None:
    """Return why the modules of the block are not supported; None if they are."""
    parts = [getattr(block, name) for name in block.parts]
    if not block.has_own_forms or any(type(p) is not kind for p, kind in zip(parts, block.parts.values(), strict=True)):
        return "the block or a part of it is of a subclass"
    own = [block, *parts]
    if not all(guard.is_unmodified(part, type(part)) for part in own):
        return "something listens to its attention, as attention_maps does, or stands in a method's place"
    modules = list(block.modules())
    if not all(_has_standard_options(part, block) for part in modules if not any(part is p for p in own)):
        return "a part of the block is not as its class makes it"
    if any(guard.has_hooks(part) for part in modules[1:]):
        return "a hook listens to a part of the block"
    return None


def _has_standard_options(part: Any, block: Any) -> bool:
    """Whether a layer computes the same as the layer that the block creates: kernels read nothing but its weights."""
    if not isinstance(part, nn.Identity) and not guard.parameter_names(part) >= {"weight", "bias"}:
        return False   # computed from other parameters, as by a parametrization
    if type(part) in CONVS:
        centred = set(part.stride) == {1} and part.padding == tuple(k // 2 for k in part.kernel_size)
        beside = part.stride == part.kernel_size and not any(part.padding)
        plain = part.groups == 1 and set(part.dilation) == {1}
        mode = part.padding_mode == getattr(block.spec, "padding", "zeros")
        return plain and mode and (centred or beside)
    return type(part) in LEAVES and (type(part) not in NORMS or bool(part.affine))


def _refusal_of_context(block: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """Return why kernels cannot be called now; None if they can. In a graph, the compiler checks GPU and tensors."""
    if torch.compiler.is_compiling():
        return None
    device = inputs[0].device
    if device.type == "cuda" and capability(device) < CAPABILITY:
        return f"the GPU's compute capability is {'.'.join(map(str, capability(device)))}, and it takes 8.0 or later"
    if _is_tracing():
        return "torch.jit.trace would not see what it does"
    if guard.in_transform() or guard.in_forward_derivative():
        return "torch.func transforms and forward derivatives take operators apart"
    if not (kinds := {type(t) for t in _tensors(block, inputs)}).issubset(guard.PLAIN):
        return f"it takes plain tensors, got {', '.join(sorted(kind.__name__ for kind in kinds))}"
    return None


def _refusal_of_block(block: Any, inputs: Sequence[Tensor]) -> str | None:
    """Return the result of the `refusal` function of the block's kernels, if it has one."""
    refusal = getattr(block.triton_form(), "refusal", None)
    return refusal(block, *inputs) if refusal else None


def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU, for example (9, 0) for an H100."""
    return _properties(device) if torch.compiler.is_compiling() else _cached_properties(device)


def _properties(device: torch.device) -> tuple[int, int]:
    """Return the compute capability, without a cache."""
    properties = torch.cuda.get_device_properties(device)   # a constant to torch.compile
    return properties.major, properties.minor


_cached_properties = cache(_properties)
