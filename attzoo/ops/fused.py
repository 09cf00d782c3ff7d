"""Fused kernels, seen from torch: when a block may take one, and how autograd and graphs call it.

The kernels are in the blocks' triton.py, imported only once a block has chosen them. What is here imports no Triton.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from math import prod
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import settings
from ..contract import older
from ..extras import missing
from . import guard, tape
from .torch import BATCH_NORM, CONV, PLAIN
from .torch_cpu import by_torch, dense, differentiate
from .wins import LEAST

DTYPES: Final = {torch.float32, torch.float16, torch.bfloat16}
CAPABILITY: Final = (8, 0)   # the first GPUs with bfloat16
LONGEST: Final = 1 << 31     # numbers in a sample, channels in a batch: these are counted in 32 bits
CONVS: Final = tuple(CONV.values())
NORMS: Final = tuple(BATCH_NORM.values())
OLDEST: Final = "3.6"        # Triton that the kernels have been compiled with
OLDEST_TORCH: Final = "2.11"   # that was tested with it: torch.compile and torch.export of 2.6 cannot import it
ABSENT: Final = find_spec("triton") is None
TRITON: Final = next((it.version for it in distributions(name="triton")), OLDEST)   # a nightly has another name
EARLY: Final = older(TRITON, OLDEST)
EARLY_TORCH: Final = older(torch.__version__, OLDEST_TORCH)
INTERPRETED: Final = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")   # in Python
ALIGNED: Final = 16          # bytes that Triton reads at once where an address is a multiple of them
LEAVES: Final = (nn.Linear, nn.Identity, *NORMS)
PASSED: WeakKeyDictionary[nn.Module, tuple[guard.Snapshot, list[Any]]] = WeakKeyDictionary()   # by `refusal`
_is_tracing: Final[Callable[[], bool]] = torch.jit.is_tracing   # type: ignore[attr-defined]
HERE = threading.local()     # `plain` on it: this thread is running a plain form; `in_graph`: an operator of a graph


# ---- when ------------------------------------------------------------------------------------------------------------


def serves(
    block: nn.Module,
    kind: type,
    x: Tensor,
    *others: Tensor | None,
    parts: Sequence[tuple[nn.Module, type]] = (),
    unless: Callable[..., str | None] = lambda *args: None,
) -> bool:
    """Whether the fused form of `block`, a `kind`, is to compute with these inputs: attzoo.kernels decides.

    parts: blocks that it is made of, and what they must be. unless: of block and inputs, a reason of the block's own
    why not, or None, asked last. Raises RuntimeError under kernels("triton") where there is no fused form.
    """
    if settings.chosen == "eager":
        return False
    if settings.chosen == "auto":
        program = guard.is_exporting() or not isinstance(x, Tensor)   # which is for all sizes
        if program or not wins(kind, x):
            return False
    inputs = [x, *(t for t in others if t is not None)]
    if not torch.compiler.is_compiling():
        if getattr(HERE, "plain", False):
            return False
        if passes_again(block, inputs):
            return True
    why = refusal(block, inputs, ((block, kind), *parts)) or unless(block, *inputs)
    if not why and not torch.compiler.is_compiling():
        PASSED[block] = guard.Snapshot(block), [_kind_of(x) for x in inputs]
    if why and settings.chosen == "triton":
        asked = f'kernels("triton") asks for a fused {kind.__name__}'
        raise RuntimeError(f'{asked}, but {why}; kernels("auto") has the plain form')
    return not why


def passes_again(block: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether `refusal` found nothing against this block and such inputs before, and nothing has changed since."""
    known = PASSED.get(block)
    return (
        known is not None
        and known[1] == [_kind_of(x) for x in inputs]
        and known[0].holds(block)
        and not (_is_tracing() or guard.in_transform() or guard.in_forward_derivative())
    )


def _kind_of(x: Tensor) -> tuple[Any, ...]:
    return type(x), x.shape, x.dtype, x.device


def wins(kind: type, x: Tensor) -> bool:
    """Whether a recorded win covers this call."""
    if not LEAST or not x.is_cuda:
        return False
    dtype = str(x.dtype).removeprefix("torch.")
    case = kind.__name__, capability(x.device), dtype, not x.is_contiguous(), torch.is_grad_enabled()
    return case in LEAST and x.numel() >= LEAST[case]


def unavailable() -> str | None:
    """Why what is installed runs no kernels, whatever the block and its inputs; None where it does."""
    if ABSENT:
        return missing("triton", "triton", "a kernel")
    if EARLY_TORCH:
        return f"its kernels take PyTorch {OLDEST_TORCH} or later, got {torch.__version__}"
    if EARLY:
        return f"its kernels take Triton {OLDEST} or later, got {TRITON}"
    return "its kernels are for NVIDIA GPUs" if torch.version.hip else None


def refusal(block: nn.Module, inputs: Sequence[Tensor], parts: Sequence[tuple[nn.Module, type]]) -> str | None:
    """Why there is no fused form for these inputs; None where there is. Asked where `passes_again` cannot tell."""
    if why := unavailable():
        return why
    if not all(isinstance(x, Tensor) for x in inputs):
        return f"torch.fx would not see what it does, and passes {type(inputs[0]).__name__}"
    device, modules = inputs[0].device, list(block.modules())
    tensors = [*inputs, *(t for part in modules for t in guard.own_tensors(part))]
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
    if any(type(part) is not kind for part, kind in parts):
        return "the block or a part of it is of a subclass"
    if not all(guard.is_unmodified(part, kind) for part, kind in parts):
        return "something listens to its attention, as attention_maps does, or stands in a method's place"
    own = [part for part, _ in parts]
    if not all(_ordinary(part, block) for part in modules if not any(part is p for p in own)):
        return "a part of the block is not as its class makes it"
    if any(guard.has_hooks(part) for part in modules[1:]):
        return "a hook listens to a part of the block"
    return None if torch.compiler.is_compiling() else _unusual(tensors, device)


def _ordinary(part: Any, block: Any) -> bool:
    """Whether a part computes what a block's own would: nothing here looks at more than its numbers."""
    if not isinstance(part, nn.Identity) and not guard.parameter_names(part) >= {"weight", "bias"}:
        return False   # what stands in their place is made of others, which no list of parameters names
    if type(part) in CONVS:
        centred = set(part.stride) == {1} and part.padding == tuple(k // 2 for k in part.kernel_size)
        beside = part.stride == part.kernel_size and not any(part.padding)
        plain = part.groups == 1 and set(part.dilation) == {1}
        mode = part.padding_mode == getattr(block.spec, "padding", "zeros")
        return plain and mode and (centred or beside)
    return type(part) in LEAVES and (type(part) not in NORMS or bool(part.affine))


def _unusual(tensors: Sequence[Tensor], device: torch.device) -> str | None:
    """What a graph would not ask: its compiler runs on a GPU that it knows, of tensors as they are."""
    if device.type == "cuda" and capability(device) < CAPABILITY:
        return f"the GPU's compute capability is {'.'.join(map(str, capability(device)))}, and it takes 8.0 or later"
    if _is_tracing():
        return "torch.jit.trace would not see what it does"
    if guard.in_transform() or guard.in_forward_derivative():
        return "torch.func transforms and forward derivatives take operators apart"
    if not (kinds := {type(t) for t in tensors}).issubset(PLAIN):
        return f"it takes plain tensors, got {', '.join(sorted(kind.__name__ for kind in kinds))}"
    return None


def capability(device: torch.device) -> tuple[int, int]:
    """Of a GPU: (9, 0) for an H100, say."""
    return _properties(device) if torch.compiler.is_compiling() else _known(device)


def _properties(device: torch.device) -> tuple[int, int]:
    it = torch.cuda.get_device_properties(device)   # which torch.compile knows for a constant
    return it.major, it.minor


_known = cache(_properties)


# ---- how -------------------------------------------------------------------------------------------------------------


class Fused:
    """y, *kept = fused(block, *tensors, *options), with a forward and a backward pass by hand.

    Eagerly that is an autograd.Function, and in a graph an operator, attzoo::name, for neither looks inside. Nobody
    differentiates what is kept. Where the backward pass is differentiated in turn, the block's plain form is run again.

    arguments: the operator's, in the words of torch.library: the block's `inputs`, what it learns, in the order of its
    parameters and None where it has none, `fixed` tensors without a gradient, and options.
    outputs(*args): room for y and for all that is kept, from shapes alone. forward(args, outputs): writes them.
    backward(dy, args, y, kept, gradients): writes a gradient for each tensor that has one.
    rereads(*args): whether backward gets y, which is then kept too, or None.
    settings(x): what else the kernels depend on, besides the arguments' shapes, strides, dtypes and values.
    plain(block): a module whose call is all that the kernels do, by what of the block's parameters that takes.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        kept: int,
        outputs: Callable[..., Sequence[Tensor]],
        forward: Callable[[Sequence[Any], Sequence[Tensor]], None],
        backward: Callable[[Tensor, Sequence[Any], Tensor | None, Sequence[Tensor], list[Any]], None],
        inputs: int = 2,
        fixed: int = 0,
        rereads: Callable[..., bool] = lambda *args: False,
        plain: Callable[[nn.Module], nn.Module] = lambda block: block,
        settings: Callable[[Tensor], Hashable] = lambda x: None,
    ) -> None:
        self.settings = settings
        self.tensors = sum(argument.split()[0].startswith("Tensor") for argument in arguments.split(","))
        self.inputs, self.learned = inputs, self.tensors - fixed
        self.outputs, self.write, self.write_back = outputs, forward, backward
        self.rereads, self.plain = rereads, plain
        self.function = _function(self)
        self.operator = _operator(self, f"attzoo::{name}", arguments, kept)

    def __call__(self, block: nn.Module, *args: Any, **options: Any) -> Sequence[Tensor]:
        """The outputs. options: that the block's plain form has to be called with.

        Kernels read weights in rows, however a network was told to lay them out.
        """
        weights = [t.contiguous() if isinstance(t, Tensor) else t for t in args[self.inputs :]]
        args = *args[: self.inputs], *weights
        if torch.compiler.is_compiling():
            return self.operator(*args)
        if not torch.is_grad_enabled():   # autograd would do nothing, and take its time
            return self.forward(*args)
        return self.function.apply(Plain(self.plain, block, options), *args)

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        """The outputs, without autograd."""
        outputs = tuple(self.outputs(*args))
        self._run(self.write, args, (), outputs, args, outputs)
        return outputs

    def _run(self, write: Callable[..., None], args: Sequence[Any], before: Any, after: Any, *given: Any) -> None:
        """write(*given), a pass over tensors before, among and after args: repeated where it has been recorded."""
        device = args[0].device
        alone = len({id(arg) for arg in args[: self.inputs]}) == self.inputs   # a shortcut may be x itself
        key = write, device, alone, *map(described, before), *map(described, args), self.settings(args[0])
        tensors = [*before, *args[: self.tensors], *after]
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            tape.run(key, tensors, write, *given)
        else:
            with torch.cuda.device(device):
                tape.run(key, tensors, write, *given)

    def saved(self, args: Sequence[Any], outputs: Sequence[Tensor]) -> list[Tensor | None]:
        """What the way back needs: tensors among the arguments, y if it is read again, and what is kept."""
        return [*args[: self.tensors], outputs[0] if self.rereads(*args) else None, *outputs[1:]]

    def backward(self, dy: Tensor, saved: Sequence[Any], options: Sequence[Any]) -> list[Tensor | None]:
        """A gradient for each tensor that has one."""
        args, (y, *kept) = [*saved[: self.tensors], *options], saved[self.tensors :]
        gradients = self.gradients(args)
        self._run(self.write_back, args, (dy,), (y, *kept, *gradients), dy, args, y, kept, gradients)
        return gradients

    def gradients(self, args: Sequence[Any]) -> list[Tensor | None]:
        """Room for them."""
        return [None if t is None else torch.empty_like(t) for t in args[: self.learned]]


def described(arg: Any) -> Hashable:
    """What kernels and tiles depend on of an argument: of a tensor shape, strides, dtype and alignment."""
    if isinstance(arg, Tensor):
        return arg.shape, arg.stride(), arg.dtype, arg.data_ptr() % ALIGNED
    return tuple(arg) if isinstance(arg, list) else arg


def _function(it: Fused) -> type[torch.autograd.Function]:
    """The eager form."""

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, plain: Plain, *args: Any) -> tuple[Tensor, ...]:
            outputs = it.forward(*args)
            ctx.plain, ctx.options = plain, args[it.tensors :]
            ctx.save_for_backward(*it.saved(args, outputs))
            ctx.mark_non_differentiable(*outputs[1:])
            ctx.set_materialize_grads(False)
            return outputs

        @staticmethod
        def backward(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
            saved = ctx.saved_tensors   # asked for once: a checkpoint makes them anew, and only once
            if dy is None:
                found: Sequence[Tensor | None] = [None] * it.learned
            elif by_torch(dy):
                found = ctx.plain.gradients(saved[: it.learned], dy)
            else:
                found = it.backward(dy, saved, ctx.options)
            return None, *found, *[None] * (it.tensors - it.learned + len(ctx.options))

    return Call


class Plain:
    """A block's plain form, as the block was when it was called: run again where a gradient is to be differentiated."""

    def __init__(self, of: Callable[[nn.Module], nn.Module], block: nn.Module, options: dict[str, Any]) -> None:
        self.of, self.block, self.options = of, block, options
        known = PASSED.get(block)
        parts = block.modules() if known is None else (block, *known[0].parts)
        self.modes = [part.training for part in parts]

    def gradients(self, tensors: Sequence[Tensor | None], dy: Tensor) -> Sequence[Tensor | None]:
        """Of its inputs and its parameters, differentiable."""
        now = [part.training for part in self.block.modules()]
        try:
            self._train(self.modes)
            return differentiate(lambda *given: [self._call(self.of(self.block), given)], tuple(tensors), [dy])
        finally:
            self._train(now)

    def _call(self, module: nn.Module, tensors: Sequence[Tensor | None]) -> Tensor:
        names = [name for name, _ in module.named_parameters()]
        present = [t for t in tensors if t is not None]
        inputs, learned = present[: len(present) - len(names)], present[len(present) - len(names) :]
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}   # they run once
        arrays = dict(zip(names, learned, strict=True)) | buffers
        HERE.plain = True   # of this thread alone: others may call blocks meanwhile
        try:
            return torch.func.functional_call(module, arrays, tuple(inputs), self.options)
        finally:
            HERE.plain = False

    def _train(self, modes: Sequence[bool]) -> None:
        for part, training in zip(self.block.modules(), modes, strict=True):
            part.training = training


def _in_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which knows when it runs that it is an operator of a graph."""

    def run(*args: Any) -> Any:
        HERE.in_graph = True
        try:
            return function(*args)
        finally:
            HERE.in_graph = False

    return run


def _operator(it: Fused, name: str, arguments: str, kept: int) -> Any:
    """The form for graphs: one operator forward, one back."""
    library = torch.library
    results = ", ".join(["Tensor"] * (1 + kept))
    ahead = library.custom_op(name, _in_graph(it.forward), mutates_args=(), schema=f"({arguments}) -> ({results})")
    ahead.register_fake(lambda *args: tuple(it.outputs(*args)))

    def back(dy: Tensor, y: Tensor | None, kept: list[Tensor], *args: Any) -> list[Tensor]:
        found = it.backward(dy, [*args[: it.tensors], y, *kept], args[it.tensors :])
        return [gradient for gradient in found if gradient is not None]

    schema = f"(Tensor dy, Tensor? y, Tensor[] kept, {arguments}) -> Tensor[]"
    again = library.custom_op(f"{name}_backward", _in_graph(back), mutates_args=(), schema=schema)
    again.register_fake(lambda dy, y, kept, *args: [t for t in it.gradients(args) if t is not None])

    def setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
        ctx.options = inputs[it.tensors :]
        ctx.save_for_backward(*it.saved(inputs, output))

    def backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
        saved = ctx.saved_tensors
        tensors, (y, *kept) = saved[: it.tensors], saved[it.tensors :]
        found = iter(again(dy, y, kept, *tensors, *ctx.options))
        gradients = [None if t is None else next(found) for t in tensors[: it.learned]]
        return *gradients, *[None] * (it.tensors - it.learned + len(ctx.options))

    ahead.register_autograd(backward, setup_context=setup)
    return ahead


def densely(x: Tensor) -> Tensor:
    """x without gaps: copied only where it has some."""
    return x if dense(x) else x.contiguous()
