"""The base classes of PyTorch blocks: a module with a spec, and the choice between fast forms and the plain one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import is_tensor_like

from ..contract import AnySpec, NamedArguments
from ..fast import choice
from ..fast.choice import CpuForm
from ..ops import torch as ops
from ..ops import torch_pickle
from ..ops.guard import PLAIN, has_hooks


class SpecModule(NamedArguments, nn.Module):
    """A module that holds a spec: a block or a network, with the spec's initial weights and its checks of inputs.

    A subclass makes layers, whose paths are the canonical names of the spec's weights.
    """

    def __init__(self, spec: AnySpec) -> None:
        super().__init__()
        self.spec = spec
        self.accepted_kinds: list[Any] | None = None   # shape, dtype and is_meta of the inputs that were checked last

    def reset_parameters(self) -> None:
        """Assign new initial values to every parameter and buffer, as the spec describes them."""
        for name, weight in self.spec.weights.items():
            ops.initialize(ops.find(self, name), weight)
        for name, buffer in self.named_buffers():
            if name.endswith("num_batches_tracked"):   # a buffer of torch that the spec does not have
                buffer.zero_()

    def conv_same(self, name: str, *, dilation: int = 1, groups: int = 1, **options: Any) -> nn.Module:
        """Return a convolution for the kernel and bias `name` of the spec, padded with zeros to keep the size.

        Args:
            name: canonical name, such as "conv". The spec's kernel is (O, I / groups, *k) with odd k, or (O, I) for
                k = 1 if the spec has spatial_dims.
            dilation: distance between neighbouring taps of the kernel, in pixels.
            groups: number of groups into which the channels are divided.
            options: device and dtype.

        """
        outputs, inputs, *kernel = self.spec.weights[f"{name}.weight"].shape
        kernel = kernel or [1] * self.spec.spatial_dims   # type: ignore[attr-defined]
        options |= {"padding": tuple(dilation * (k // 2) for k in kernel), "dilation": dilation, "groups": groups}
        options |= {"bias": f"{name}.bias" in self.spec.weights}
        return ops.CONV[len(kernel)](groups * inputs, outputs, tuple(kernel), **options)

    def batch_norm(self, name: str, spatial_dims: int, **options: Any) -> nn.Module:
        """Return the layer for batch norm `name` of the spec, or the identity if the spec has none.

        The layer with spatial_dims=1 also takes (N, C). options: device and dtype.
        """
        weight = self.spec.weights.get(f"{name}.weight")
        return ops.BATCH_NORM[spatial_dims](weight.size, **options) if weight else nn.Identity()

    def check_inputs(self, *inputs: Any) -> None:
        """Raise ValueError for a shape that the spec refuses, and TypeError for a non-tensor or a wrong dtype.

        Raise ValueError also if the inputs have values and a parameter has none, because it is on the meta device:
        convolutions of torch would read uninitialised memory.

        Tensor-likes without a shape, such as proxies of torch.fx, are not checked. Inputs with the same shapes and
        dtypes as the last ones are accepted at once, because the check takes a noticeable time for small inputs.
        """
        eager = not torch.compiler.is_compiling()   # first, so that a graph does not depend on the last input
        for x in inputs:
            if not isinstance(x, Tensor):
                ops.require_tensors(*inputs)
                return
            if eager and (x.is_nested or x.layout != torch.strided):
                raise ops.not_dense(x)
            eager = eager and type(x) in PLAIN   # sizes of a FakeTensor may be symbolic
        kinds = [(x.shape, x.dtype, x.is_meta) for x in inputs]
        if eager and kinds == self.accepted_kinds:
            return
        if eager and not any(x.is_meta for x in inputs):
            _check_values(self)
        self.spec.check_inputs(*(x.shape for x in inputs))
        own_dtype = ops.first_dtype(self)
        for x in inputs:
            if not x.dtype.is_floating_point:
                hint = ": convert it, as x.float() does, and scale it as in training"
                raise TypeError(f"expected a floating-point input, got {x.dtype}{hint}")
            if own_dtype not in (x.dtype, None) and not torch.is_autocast_enabled(x.device.type):
                hint = f": convert the input, x.to({own_dtype}), or the block, block.to({x.dtype})"
                raise TypeError(f"expected the block's dtype, {own_dtype}, got {x.dtype}{hint}")
        if eager and all(own_dtype in (x.dtype, None) for x in inputs):
            self.accepted_kinds = kinds

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Apply a function to all tensors, as nn.Module does, and forget which inputs `check_inputs` has accepted."""
        self.accepted_kinds = None   # .half() and similar methods change the accepted dtype
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickle and copy, with the number of its format."""
        state: dict[str, Any] = super().__getstate__()   # without the compiled call of torch.compile
        return state | {torch_pickle.KEY: torch_pickle.FORMAT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state. A state that an earlier version pickled is converted."""
        super().__setstate__({name: value for name, value in state.items() if name != torch_pickle.KEY})
        if torch_pickle.KEY not in state:
            torch_pickle.update(self)

    def extra_repr(self) -> str:
        """Return the arguments as text."""
        return ", ".join(f"{name}={value!r}" for name, value in self.spec.config().items())


def _check_values(module: nn.Module) -> None:
    """Raise ValueError if a parameter of a module, or of a layer inside, is on the meta device.

    Layers with hooks or another `forward` are skipped: accelerate loads their weights when they are called.
    """
    for path, part in module.named_modules():
        if has_hooks(part) or "forward" in vars(part):
            continue
        if name := next((name for name, tensor in part.named_parameters(path, recurse=False) if tensor.is_meta), None):
            fix = "load the weights by load_state_dict(state, assign=True), or call to_empty() and reset_parameters()"
            raise ValueError(f"expected weights with values, got {name} on the meta device: {fix}")


class Block(SpecModule):
    """The base class of a block, which computes its output from `attention`, defined by a subclass.

    A form is an implementation of the block: the plain form, written with operations of torch; the form for CPUs; or
    the fused kernels. `fast.choice` selects one of them for every call.

    Attributes:
        parts: classes of the blocks inside this one, by name of the attribute.
        cpu_form: the form for CPUs, which makes fewer passes over memory; None for a block without.
        has_parts: whether the block has parts.
        has_kernels: whether the block has fused kernels.
        has_own_forms: whether this class itself defines the form for CPUs or the kernels. Otherwise they are not used,
            because they would ignore what a subclass changes.
        own_methods: the methods that affect the output, as they were when the class was defined.
    """

    attention: Callable[..., Any]
    parts: ClassVar[Mapping[str, type]] = {}
    cpu_form: ClassVar[CpuForm | None] = None
    has_parts: ClassVar[bool] = False
    has_kernels: ClassVar[bool] = False
    has_own_forms: ClassVar[bool] = False
    own_methods: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Set the class attributes that say which forms a subclass has."""
        super().__init_subclass__(**kwargs)
        cls.has_parts = bool(cls.parts)   # torch.export of 2.6 reads a bool of a class, but no dict of classes
        cls.has_kernels = cls.triton_form is not Block.triton_form
        cls.has_own_forms = "triton_form" in vars(cls) or "cpu_form" in vars(cls)
        cls.own_methods = {name: getattr(cls, name, None) for name in ("attention", "forward", "compute", "plain")}

    @staticmethod
    def triton_form() -> Any:
        """Import and return the module of the block's fused kernels. A block with kernels overrides it.

        The module has `fused(block, *inputs, ...)`, which has the arguments of `forward`, and may have
        `refusal(block, *inputs)`, which returns why the kernels cannot compute this call, or None if they can.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, shortcut: Tensor | None = None, act: str | None = None) -> Tensor:
        """Return act(block(x) + shortcut), the end of a residual branch: (N, C, *S) -> (N, C, *S).

        Args:
            x: the input, (N, C, *S).
            shortcut: of x's shape and dtype, never broadcast; None adds nothing.
            act: "relu", or None for no activation.

        Raises:
            TypeError: an input is not a floating-point tensor, or has another dtype than the block or x.
            ValueError: an input has a shape that the block does not accept, or act is another value.

        """
        self.check_residual(x, shortcut, act)
        return self.compute(x, shortcut=shortcut, act=act)

    def compute(self, *inputs: Tensor, **residual: Any) -> Tensor:
        """Return the output of the block, computed by the fastest form that supports the inputs.

        residual: arguments `shortcut` and `act` of `forward`, if the block takes them.
        """
        shortcut, act = residual.get("shortcut"), residual.get("act")
        tensors = inputs if shortcut is None else (*inputs, shortcut)
        if self.has_kernels and choice.should_use_kernels(self, *tensors):
            return self.triton_form().fused(self, *inputs, **residual)
        if choice.should_use_cpu_form(self, *inputs):
            return ops.add_and_activate_(self.cpu_form.compute(self, *inputs), shortcut, act)   # type: ignore[union-attr]
        y = self.plain(*inputs)
        if self.has_parts:   # hooks on a part may have stored the tensor it returned: it must not change in place
            return ops.add_and_activate(y, shortcut, act)
        return ops.add_and_activate_(y, shortcut, act)

    def plain(self, *inputs: Tensor) -> Tensor:
        """Return the output of the plain form: the first input combined with the coefficients by `spec.combine`."""
        return self.spec.combine(inputs[0], self.attention(*inputs), ops)   # type: ignore[attr-defined]

    def check_residual(self, x: Any, shortcut: Any, act: str | None) -> None:
        """Raise TypeError or ValueError unless x, shortcut and act are valid arguments of `forward`."""
        self.check_inputs(x)
        is_choice = isinstance(act, (str, type(None))) and act in ops.ACTS
        if not is_choice and not is_tensor_like(act):   # torch.fx passes proxies for all arguments
            raise ValueError(f"act must be one of {', '.join(map(repr, ops.ACTS))}, got {act!r}")
        if shortcut is None:
            return
        ops.require_tensors(shortcut, role=" as shortcut")
        if not (isinstance(x, Tensor) and isinstance(shortcut, Tensor)):
            return
        if not torch.compiler.is_compiling() and (shortcut.is_nested or shortcut.layout != torch.strided):
            raise ops.not_dense(shortcut)
        if shortcut.shape != x.shape:
            got = f"{tuple(shortcut.shape)}: project or resize it first"
            raise ValueError(f"expected a shortcut of x's shape, {tuple(x.shape)}, got {got}")
        if shortcut.device != x.device:
            got = f"one on {shortcut.device}: move it first"
            raise ValueError(f"expected a shortcut on x's device, {x.device}, got {got}")
        if shortcut.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"expected a shortcut of x's dtype, {x.dtype}, got {shortcut.dtype}: convert it first")


class IdentityStart(nn.Module):
    """Compute x + gamma * (block(x) - x). gamma is initially 0, so that the outputs of a network do not change.

    gamma: a parameter of shape (1,).
    """

    def __init__(self, block: nn.Module, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.block = block
        self.gamma = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set gamma to 0, for networks that were created on the meta device. The block has its own method."""
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor, *gating: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, *S), in the dtype of x."""
        residual = self.block(x, *gating).to(x.dtype) - x
        return x + self.gamma.to(x.dtype) * residual
