"""Wrap kernels as PyTorch operators with hand-written forward and backward passes, for autograd and for graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..ops.guard import is_dense
from . import tape
from .choice import CHECKED, THREAD_STATE
from .double_backward import differentiate, needs_differentiable_backward

ALIGNED: Final = 16   # bytes; Triton compiles wider loads for addresses that are a multiple of this


class Fused:
    """An operator `y, *saved = fused(block, *tensors, *options)` with hand-written forward and backward passes.

    In eager mode it is an `autograd.Function`; in a graph it is the operator `attzoo::name`. The saved tensors have
    no gradient. A backward pass that is itself differentiated runs the block's plain form, differentiated by autograd.

    Args:
        name: name of the operator.
        arguments: argument list of the operator, as `torch.library` writes a schema: the block's inputs, its parameters
            in order (None for those that it does not have), `fixed` tensors without a gradient, then options.
        saved_count: number of tensors that `outputs` returns after y.
        outputs: `outputs(*args)` allocates y and the saved tensors, from shapes alone.
        forward: `forward(args, outputs, *updated)` writes into the tensors of `outputs`; `updated` is that of a call.
        backward: `backward(dy, args, y, saved, gradients)` writes into the tensors of `gradients`.
        inputs: number of inputs of the block, a shortcut included.
        fixed: number of tensors without a gradient, such as running statistics.
        backward_needs_y: `backward_needs_y(*args)` returns whether y is saved for `backward`, which otherwise gets
            None.
        plain: `plain(block)` returns a module that computes the same as the kernels with the block's parameters.
        settings: `settings(x)` returns global settings that the kernels depend on. Recordings of passes (see tape.py)
            are repeated only under equal settings.

    """

    def __init__(
        self,
        name: str,
        arguments: str,
        saved_count: int,
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
        self.operator = _operator(self, f"attzoo::{name}", arguments, saved_count)

    def __call__(
        self, block: nn.Module, *args: Any, updated: Sequence[Sequence[Any]] = (), **options: Any
    ) -> Sequence[Tensor]:   # fmt: skip
        """Return y and the saved tensors for the operator's arguments `args`.

        Weights are made contiguous, because the kernels assume row-major order.

        Args:
            block: the block.
            args: the operator's arguments.
            updated: groups of tensors that the forward pass updates in place, such as running statistics, and options
                of the update. Without effect in a graph, whose operators update nothing in place.
            options: keyword arguments for the block's plain form.
        """
        weights = [tensor.contiguous() if isinstance(tensor, Tensor) else tensor for tensor in args[self.inputs :]]
        args = *args[: self.inputs], *weights
        if torch.compiler.is_compiling():
            return self.operator(*args)
        if not torch.is_grad_enabled():   # the autograd.Function would only cost time
            return self.forward(*args, updated=updated)
        return self.function.apply(PlainRerun(self.plain, block, options), updated, *args)

    def forward(self, *args: Any, updated: Sequence[Sequence[Any]] = ()) -> tuple[Tensor, ...]:
        """Return y and the saved tensors for the operator's arguments, without autograd.

        updated: as for a call.
        """
        outputs = tuple(self.outputs(*args))
        values = list(chain.from_iterable(updated))
        updated_tensors = [value for value in values if isinstance(value, Tensor)]
        self._run(self.write, (*args, *values), (), (*updated_tensors, *outputs), args, outputs, *updated)
        if updated_tensors:
            torch.autograd.graph.increment_version(updated_tensors)
        return outputs

    def _run(
        self, write: Callable[..., None], args: Sequence[Any], first_tensors: Any, last_tensors: Any, *write_args: Any
    ) -> None:
        """Call write(*write_args), or repeat the recording of an earlier call (see tape.py).

        The tensors of the pass are `first_tensors`, those of the operator, which `args` begin with, and `last_tensors`,
        in this order. The launches depend on `args`.
        """
        device = args[0].device
        distinct = len({id(arg) for arg in args[: self.inputs]}) == self.inputs   # a shortcut may be x itself
        key = write, device, distinct, *map(cache_key, first_tensors), *map(cache_key, args), self.settings(args[0])
        tensors = [*first_tensors, *args[: self.tensors], *last_tensors]
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            tape.run(key, tensors, write, *write_args)
        else:
            with torch.cuda.device(device):
                tape.run(key, tensors, write, *write_args)

    def saved(self, args: Sequence[Any], outputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the tensors to save for `backward`: those in `args`, y (None if not needed), and `outputs` after y."""
        return [*args[: self.tensors], outputs[0] if self.backward_needs_y(*args) else None, *outputs[1:]]

    def backward(self, dy: Tensor, saved: Sequence[Any], options: Sequence[Any]) -> list[Tensor | None]:
        """Return the gradient of each input and parameter; None for an input or parameter that is None.

        dy: gradient of y. saved: the result of the method `saved`. options: the operator's arguments after the tensors.
        """
        args, (y, *saved_outputs) = [*saved[: self.tensors], *options], saved[self.tensors :]
        gradients = self.gradients(args)
        self._run(self.write_back, args, (dy,), (y, *saved_outputs, *gradients), dy, args, y, saved_outputs, gradients)
        return gradients

    def gradients(self, args: Sequence[Any]) -> list[Tensor | None]:
        """Allocate the gradient of each input and parameter in `args`; None for an input or parameter that is None."""
        return [None if tensor is None else torch.empty_like(tensor) for tensor in args[: self.learned]]


def cache_key(arg: Any) -> Hashable:
    """Return the part of a recording's key for an argument of the operator.

    For a tensor it is shape, strides, dtype and alignment, for a list a tuple, and for any other value the value.
    """
    if isinstance(arg, Tensor):
        return arg.shape, arg.stride(), arg.dtype, arg.data_ptr() % ALIGNED
    return tuple(arg) if isinstance(arg, list) else arg


def _function(fused: Fused) -> type[torch.autograd.Function]:
    """Return the class `autograd.Function` that runs `fused` in eager mode."""

    class Call(torch.autograd.Function):
        """The `autograd.Function` of `fused`."""

        @staticmethod
        def forward(ctx: Any, plain: PlainRerun, updated: Sequence[Sequence[Any]], *args: Any) -> tuple[Tensor, ...]:
            """Return y and the saved tensors; `plain` reruns the plain form for differentiable gradients."""
            outputs = fused.forward(*args, updated=updated)
            ctx.plain, ctx.options = plain, args[fused.tensors :]
            ctx.save_for_backward(*fused.saved(args, outputs))
            ctx.mark_non_differentiable(*outputs[1:])
            ctx.set_materialize_grads(False)
            return outputs

        @staticmethod
        def backward(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
            """Return the gradients of all arguments, None for those without."""
            saved = ctx.saved_tensors   # read once: a checkpoint recomputes them, and only once
            if dy is None:
                gradients: Sequence[Tensor | None] = [None] * fused.learned
            elif needs_differentiable_backward(dy):
                gradients = ctx.plain.gradients(saved[: fused.learned], dy)
            else:
                gradients = fused.backward(dy, saved, ctx.options)
            return None, None, *gradients, *[None] * (fused.tensors - fused.learned + len(ctx.options))

    return Call


class PlainRerun:
    """Rerun a block's plain form, in the training mode of the original call, for differentiable gradients.

    plain: `Fused.plain`, which returns the module to run. options: keyword arguments of the block's call.
    """

    def __init__(self, plain: Callable[[nn.Module], nn.Module], block: nn.Module, options: dict[str, Any]) -> None:
        self.plain, self.block, self.options = plain, block, options
        checked = CHECKED.get(block)
        parts = block.modules() if checked is None else (block, *checked[0].parts)
        self.modes = [part.training for part in parts]

    def gradients(self, tensors: Sequence[Tensor | None], dy: Tensor) -> Sequence[Tensor | None]:
        """Return differentiable gradients of inputs and parameters, `tensors`, from the gradient dy of the output."""
        current_modes = [part.training for part in self.block.modules()]
        try:
            self._train(self.modes)
            return differentiate(lambda *values: [self._call(self.plain(self.block), values)], tuple(tensors), [dy])
        finally:
            self._train(current_modes)

    def _call(self, module: nn.Module, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return the output of a module for `tensors`: inputs, then values of its parameters. Buffers are copied."""
        names = [name for name, _ in module.named_parameters()]
        present_tensors = [tensor for tensor in tensors if tensor is not None]
        input_count = len(present_tensors) - len(names)
        inputs, learned = present_tensors[:input_count], present_tensors[input_count:]
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}   # already updated
        arrays = dict(zip(names, learned, strict=True)) | buffers
        THREAD_STATE.plain = True   # thread-local: other threads may call blocks meanwhile
        try:
            return torch.func.functional_call(module, arrays, tuple(inputs), self.options)
        finally:
            THREAD_STATE.plain = False

    def _train(self, modes: Sequence[bool]) -> None:
        """Set the training modes of the block and its submodules, one for each module in the order of `modules()`."""
        for part, training in zip(self.block.modules(), modes, strict=True):
            part.training = training


def _in_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that `THREAD_STATE.in_graph` is True while it runs."""

    def call_in_graph(*args: Any) -> Any:
        """Return function(*args)."""
        THREAD_STATE.in_graph = True
        try:
            return function(*args)
        finally:
            THREAD_STATE.in_graph = False

    return call_in_graph


def _operator(fused: Fused, name: str, arguments: str, saved_count: int) -> Any:
    """Register the operator of `fused` for graphs and a second one for its backward pass, and return the first.

    name: name with namespace, "attzoo::se". arguments and saved_count: as in `Fused`.
    """
    library = torch.library
    results = ", ".join(["Tensor"] * (1 + saved_count))
    schema = f"({arguments}) -> ({results})"
    operator = library.custom_op(name, _in_graph(fused.forward), mutates_args=(), schema=schema)
    operator.register_fake(lambda *args: tuple(fused.outputs(*args)))

    def run_backward(dy: Tensor, y: Tensor | None, saved: list[Tensor], *args: Any) -> list[Tensor]:
        """Return the gradients of those inputs and parameters that are not None.

        Arguments: the gradient of y, y, the other saved tensors, and the operator's arguments.
        """
        gradients = fused.backward(dy, [*args[: fused.tensors], y, *saved], args[fused.tensors :])
        return [gradient for gradient in gradients if gradient is not None]

    schema = f"(Tensor dy, Tensor? y, Tensor[] saved, {arguments}) -> Tensor[]"
    backward_operator = library.custom_op(f"{name}_backward", _in_graph(run_backward), mutates_args=(), schema=schema)
    backward_operator.register_fake(
        lambda dy, y, saved, *args: [tensor for tensor in fused.gradients(args) if tensor is not None]
    )

    def setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
        """Save the tensors for the backward pass."""
        ctx.options = inputs[fused.tensors :]
        ctx.save_for_backward(*fused.saved(inputs, output))

    def backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
        """Return the gradients of all arguments, None for those without."""
        saved = ctx.saved_tensors
        tensors, (y, *saved_outputs) = saved[: fused.tensors], saved[fused.tensors :]
        computed_gradients = iter(backward_operator(dy, y, saved_outputs, *tensors, *ctx.options))
        gradients = [None if tensor is None else next(computed_gradients) for tensor in tensors[: fused.learned]]
        return *gradients, *[None] * (fused.tensors - fused.learned + len(ctx.options))

    operator.register_autograd(backward, setup_context=setup)
    return operator


def as_dense(x: Tensor) -> Tensor:
    """Return x, or a contiguous copy if its elements do not fill its memory without gaps."""
    return x if is_dense(x) else x.contiguous()
