"""Kernels as functions of torch: how autograd and graphs call them, with a forward and a backward pass by hand."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..ops.guard import is_dense
from . import tape
from .choice import CHECKED, THREAD_STATE
from .cpu import differentiate, needs_differentiable_backward

ALIGNED: Final = 16          # bytes that Triton reads at once where an address is a multiple of them


class Fused:
    """y, *kept = fused(block, *tensors, *options), with a forward and a backward pass by hand.

    Eagerly that is an autograd.Function, and in a graph an operator, attzoo::name, for neither looks inside. Nobody
    differentiates what is kept. Where the backward pass is differentiated in turn, the block's plain form is run again.

    arguments: the operator's, in the words of torch.library: the block's `inputs`, what it learns, in the order of its
    parameters and None where it has none, `fixed` tensors without a gradient, and options.
    outputs(*args): room for y and for all that is kept, from shapes alone. forward(args, outputs): writes them.
    backward(dy, args, y, kept, gradients): writes a gradient for each tensor that has one.
    backward_needs_y(*args): whether backward gets y, which is then kept too, or None.
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
        backward_needs_y: Callable[..., bool] = lambda *args: False,
        plain: Callable[[nn.Module], nn.Module] = lambda block: block,
        settings: Callable[[Tensor], Hashable] = lambda x: None,
    ) -> None:
        self.settings = settings
        self.tensors = sum(argument.split()[0].startswith("Tensor") for argument in arguments.split(","))
        self.inputs, self.learned = inputs, self.tensors - fixed
        self.outputs, self.write, self.write_back = outputs, forward, backward
        self.backward_needs_y, self.plain = backward_needs_y, plain
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
        return self.function.apply(PlainRerun(self.plain, block, options), *args)

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        """The outputs, without autograd."""
        outputs = tuple(self.outputs(*args))
        self._run(self.write, args, (), outputs, args, outputs)
        return outputs

    def _run(self, write: Callable[..., None], args: Sequence[Any], before: Any, after: Any, *given: Any) -> None:
        """write(*given), a pass over tensors before, among and after args: repeated where it has been recorded."""
        device = args[0].device
        alone = len({id(arg) for arg in args[: self.inputs]}) == self.inputs   # a shortcut may be x itself
        key = write, device, alone, *map(cache_key, before), *map(cache_key, args), self.settings(args[0])
        tensors = [*before, *args[: self.tensors], *after]
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            tape.run(key, tensors, write, *given)
        else:
            with torch.cuda.device(device):
                tape.run(key, tensors, write, *given)

    def saved(self, args: Sequence[Any], outputs: Sequence[Tensor]) -> list[Tensor | None]:
        """What the way back needs: tensors among the arguments, y if it is read again, and what is kept."""
        return [*args[: self.tensors], outputs[0] if self.backward_needs_y(*args) else None, *outputs[1:]]

    def backward(self, dy: Tensor, saved: Sequence[Any], options: Sequence[Any]) -> list[Tensor | None]:
        """A gradient for each tensor that has one."""
        args, (y, *kept) = [*saved[: self.tensors], *options], saved[self.tensors :]
        gradients = self.gradients(args)
        self._run(self.write_back, args, (dy,), (y, *kept, *gradients), dy, args, y, kept, gradients)
        return gradients

    def gradients(self, args: Sequence[Any]) -> list[Tensor | None]:
        """Room for them."""
        return [None if t is None else torch.empty_like(t) for t in args[: self.learned]]


def cache_key(arg: Any) -> Hashable:
    """What kernels and tiles depend on of an argument: of a tensor shape, strides, dtype and alignment."""
    if isinstance(arg, Tensor):
        return arg.shape, arg.stride(), arg.dtype, arg.data_ptr() % ALIGNED
    return tuple(arg) if isinstance(arg, list) else arg


def _function(it: Fused) -> type[torch.autograd.Function]:
    """The eager form."""

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, plain: PlainRerun, *args: Any) -> tuple[Tensor, ...]:
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
            elif needs_differentiable_backward(dy):
                found = ctx.plain.gradients(saved[: it.learned], dy)
            else:
                found = it.backward(dy, saved, ctx.options)
            return None, *found, *[None] * (it.tensors - it.learned + len(ctx.options))

    return Call


class PlainRerun:
    """A block's plain form, as the block was when it was called: run again where a gradient is to be differentiated."""

    def __init__(self, of: Callable[[nn.Module], nn.Module], block: nn.Module, options: dict[str, Any]) -> None:
        self.of, self.block, self.options = of, block, options
        known = CHECKED.get(block)
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
        THREAD_STATE.plain = True   # of this thread alone: others may call blocks meanwhile
        try:
            return torch.func.functional_call(module, arrays, tuple(inputs), self.options)
        finally:
            THREAD_STATE.plain = False

    def _train(self, modes: Sequence[bool]) -> None:
        for part, training in zip(self.block.modules(), modes, strict=True):
            part.training = training


def _in_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which knows when it runs that it is an operator of a graph."""

    def run(*args: Any) -> Any:
        THREAD_STATE.in_graph = True
        try:
            return function(*args)
        finally:
            THREAD_STATE.in_graph = False

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


def as_dense(x: Tensor) -> Tensor:
    """x without gaps: copied only where it has some."""
    return x if is_dense(x) else x.contiguous()
