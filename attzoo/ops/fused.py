"""Fused kernels, seen from torch: when a block may take one, and how autograd and graphs call it.

The kernels are in the blocks' triton.py, which only they who have chosen import. What is here imports no Triton.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.func import functional_call

from .. import settings
from .torch import BATCH_NORM, CONV
from .torch_cpu import PLAIN, by_torch, dense, differentiate, heard, itself
from .wins import WINS

DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
CAPABILITY: Final = (8, 0)   # the first GPUs with bfloat16
LONGEST: Final = 1 << 31     # numbers in a sample: places in it are counted in 32 bits
CONVS: Final = tuple(CONV.values())
NORMS: Final = tuple(BATCH_NORM.values())
ABSENT: Final = find_spec("triton") is None
INTERPRETED: Final = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")   # in Python, slowly, on a CPU too
LEAVES: Final = (nn.Linear, nn.Identity, *NORMS)


# ---- when ------------------------------------------------------------------------------------------------------------


def serves(block: nn.Module, kind: type, *inputs: Tensor, parts: Sequence[tuple[nn.Module, type]] = ()) -> bool:
    """Whether the fused form of `block`, a `kind`, is to compute: attzoo.kernels decides.

    parts: blocks that it is made of, and what they must be. Raises RuntimeError under kernels("triton") where there is
    no fused form.
    """
    if settings.chosen == "eager" or (settings.chosen == "auto" and not wins(kind, inputs[0])):
        return False
    why = refusal(block, inputs, ((block, kind), *parts))
    if why and settings.chosen == "triton":
        raise RuntimeError(f'kernels("triton") asks for a fused {kind.__name__}, but {why}')
    return not why


def wins(kind: type, x: Tensor) -> bool:
    """Whether a recorded win covers this call."""
    return any(
        win.block == kind.__name__
        and x.is_cuda
        and win.capability == capability(x.device)
        and win.dtype == str(x.dtype).removeprefix("torch.")
        and win.last == (not x.is_contiguous())
        and win.training == torch.is_grad_enabled()
        and x.numel() >= win.least
        for win in WINS
    )


def refusal(block: nn.Module, inputs: Sequence[Tensor], parts: Sequence[tuple[nn.Module, type]]) -> str | None:
    """Why there is no fused form for these inputs; None where there is."""
    tensors = [*inputs, *block.parameters(), *(b for b in block.buffers() if b.is_floating_point())]
    device = inputs[0].device
    if ABSENT:
        return 'triton is not installed: pip install "attzoo[triton]"'
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"it runs on a CUDA device, and the input is on {device}"
    if any(t.device != device for t in tensors):
        return f"its tensors are on {', '.join(sorted({str(t.device) for t in tensors}))}"
    if any(t.dtype not in DTYPES for t in tensors):
        return f"it takes float32, float16 and bfloat16, got {', '.join(sorted({str(t.dtype) for t in tensors}))}"
    if any(x.dtype != inputs[0].dtype for x in inputs):
        return f"it takes inputs of one dtype, got {', '.join(str(x.dtype) for x in inputs)}"
    if any(prod(x.shape[1:]) >= LONGEST for x in inputs):
        return f"it takes samples of fewer than 2^31 numbers, got {max(prod(x.shape[1:]) for x in inputs)}"
    if not all(itself(part, kind) for part, kind in parts):
        return "the block or a part of it is of a subclass, or something listens to its attention"
    own = [part for part, _ in parts]
    if not all(_ordinary(part, block) for part in block.modules() if not any(part is p for p in own)):
        return "a part of the block is not as its class makes it"
    if any(heard(part) for part in block.modules() if part is not block):
        return "a hook listens to a part of the block"
    return None if torch.compiler.is_compiling() else _unusual(tensors, device)


def _ordinary(part: nn.Module, block: Any) -> bool:
    """Whether a part computes what a block's own would: nothing here looks at more than its numbers."""
    if not isinstance(part, nn.Identity) and not part._parameters.keys() >= {"weight", "bias"}:
        return False   # what stands in their place is made of others, which no list of parameters names
    if isinstance(part, nn.modules.conv._ConvNd):
        centred = set(part.stride) == {1} and part.padding == tuple(k // 2 for k in part.kernel_size)
        beside = part.stride == part.kernel_size and not any(part.padding)
        plain = part.groups == 1 and set(part.dilation) == {1}
        mode = part.padding_mode == getattr(block.spec, "padding", "zeros")
        return type(part) in CONVS and plain and mode and (centred or beside)
    return type(part) in LEAVES and (type(part) not in NORMS or bool(part.affine))


def _unusual(tensors: Sequence[Tensor], device: torch.device) -> str | None:
    """What a graph would not ask: its compiler runs on a GPU that it knows, of tensors as they are."""
    if device.type == "cuda" and capability(device) < CAPABILITY:
        return f"the GPU's compute capability is {'.'.join(map(str, capability(device)))}, and it takes 8.0 or later"
    if torch.jit.is_tracing():   # type: ignore[attr-defined]
        return "torch.jit.trace would not see what it does"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and forward derivatives take operators apart"
    if any(type(t) not in PLAIN for t in tensors):
        return f"it takes plain tensors, got {', '.join(sorted({type(t).__name__ for t in tensors}))}"
    return None


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    """Of a GPU: (9, 0) for an H100, say."""
    return torch.cuda.get_device_capability(device)


# ---- how -------------------------------------------------------------------------------------------------------------


class Fused:
    """y, *kept = fused(block, *tensors, *options), with a forward and a backward pass by hand.

    Eagerly that is an autograd.Function, and in a graph an operator, attzoo::name, for neither looks inside. Nobody
    differentiates what is kept. Where the backward pass is differentiated in turn, the block's plain form is run again.

    arguments: the operator's, in the words of torch.library: the block's inputs, what it learns, in the order of its
    parameters and None where it has none, `fixed` tensors without a gradient, and options.
    outputs(*args): room for y and for all that is kept, from shapes alone. forward(args, outputs): writes them.
    backward(dy, args, kept, gradients): writes a gradient for each tensor that has one.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        kept: int,
        outputs: Callable[..., Sequence[Tensor]],
        forward: Callable[[Sequence[Any], Sequence[Tensor]], None],
        backward: Callable[[Tensor, Sequence[Any], Sequence[Tensor], Sequence[Any]], None],
        fixed: int = 0,
    ) -> None:
        self.tensors = sum(argument.split()[0].startswith("Tensor") for argument in arguments.split(","))
        self.learned = self.tensors - fixed
        self.outputs, self.write, self.write_back = outputs, forward, backward
        self.function = _function(self)
        self.operator = _operator(self, f"attzoo::{name}", arguments, kept)

    def __call__(self, block: Any, *args: Any) -> Sequence[Tensor]:
        """The outputs. Kernels read weights in rows, however a network was told to lay them out."""
        inputs = len(block.spec.inputs)
        weights = (t.contiguous() if isinstance(t, Tensor) else t for t in args[inputs:])
        args = *args[:inputs], *weights
        if torch.compiler.is_compiling():
            return self.operator(*args)
        return self.function.apply(block, *args)

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        """The outputs, without autograd."""
        outputs = tuple(self.outputs(*args))
        self.write(args, outputs)
        return outputs

    def backward(self, dy: Tensor, args: Sequence[Any], kept: Sequence[Tensor]) -> list[Tensor | None]:
        """A gradient for each tensor that has one."""
        gradients = self.gradients(args)
        self.write_back(dy, args, kept, gradients)
        return gradients

    def gradients(self, args: Sequence[Any]) -> list[Tensor | None]:
        """Room for them."""
        return [None if t is None else torch.empty_like(t) for t in args[: self.learned]]


def _function(it: Fused) -> type[Function]:
    """The eager form."""

    class Call(Function):
        @staticmethod
        def forward(ctx: Any, block: nn.Module, *args: Any) -> tuple[Tensor, ...]:
            outputs = it.forward(*args)
            ctx.block, ctx.options = block, args[it.tensors :]
            ctx.modes = [part.training for part in block.modules()]
            ctx.save_for_backward(*args[: it.tensors], *outputs[1:])
            ctx.mark_non_differentiable(*outputs[1:])
            ctx.set_materialize_grads(False)
            return outputs

        @staticmethod
        def backward(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
            saved = ctx.saved_tensors   # asked for once: a checkpoint makes them anew, and only once
            tensors, kept = saved[: it.tensors], saved[it.tensors :]
            if dy is None:
                found: Sequence[Tensor | None] = [None] * it.learned
            elif by_torch(dy):
                found = _plainly(ctx.block, ctx.modes, tensors[: it.learned], dy)
            else:
                found = it.backward(dy, [*tensors, *ctx.options], kept)
            return None, *found, *[None] * (it.tensors - it.learned + len(ctx.options))

    return Call


def _plainly(
    block: nn.Module, modes: Sequence[bool], tensors: Sequence[Tensor | None], dy: Tensor
) -> Sequence[Tensor | None]:
    """Gradients that may be differentiated, those of the block's plain form: of its inputs and its parameters.

    modes: whether each of its modules was in training when it was called.
    """
    names = [name for name, _ in block.named_parameters()]

    def call(*given: Tensor | None) -> list[Tensor]:
        present = [t for t in given if t is not None]
        inputs, learned = present[: len(present) - len(names)], present[len(present) - len(names) :]
        buffers = {name: buffer.clone() for name, buffer in block.named_buffers()}   # running statistics run once
        with settings.kernels("eager"):
            return [functional_call(block, dict(zip(names, learned, strict=True)) | buffers, tuple(inputs))]

    now = [part.training for part in block.modules()]
    try:
        _train(block, modes)
        return differentiate(call, tuple(tensors), [dy])
    finally:
        _train(block, now)


def _train(block: nn.Module, modes: Sequence[bool]) -> None:
    for part, training in zip(block.modules(), modes, strict=True):
        part.training = training


def _operator(it: Fused, name: str, arguments: str, kept: int) -> Any:
    """The form for graphs: one operator forward, one back."""
    library = torch.library
    results = ", ".join(["Tensor"] * (1 + kept))
    ahead = library.custom_op(name, it.forward, mutates_args=(), schema=f"({arguments}) -> ({results})")
    ahead.register_fake(lambda *args: tuple(it.outputs(*args)))

    def back(dy: Tensor, kept: list[Tensor], *args: Any) -> list[Tensor]:
        return [gradient for gradient in it.backward(dy, args, kept) if gradient is not None]

    schema = f"(Tensor dy, Tensor[] kept, {arguments}) -> Tensor[]"
    again = library.custom_op(f"{name}_backward", back, mutates_args=(), schema=schema)
    again.register_fake(lambda dy, kept, *args: [t for t in it.gradients(args) if t is not None])

    def setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
        ctx.options = inputs[it.tensors :]
        ctx.save_for_backward(*inputs[: it.tensors], *output[1:])

    def backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
        saved = ctx.saved_tensors
        tensors, kept = saved[: it.tensors], list(saved[it.tensors :])
        found = iter(again(dy, kept, *tensors, *ctx.options))
        gradients = [None if t is None else next(found) for t in tensors[: it.learned]]
        return *gradients, *[None] * (it.tensors - it.learned + len(ctx.options))

    ahead.register_autograd(backward, setup_context=setup)
    return ahead


def densely(x: Tensor) -> Tensor:
    """x without gaps: copied only where it has some."""
    return x if dense(x) else x.contiguous()
