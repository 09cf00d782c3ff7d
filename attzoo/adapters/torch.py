"""Adapter for torch blocks. See `Adapter` for the functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from threading import Lock
from typing import Any, BinaryIO, Final, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..blocks.torch import IdentityStart
from ..contract import Array, Coefficients, contiguous, map_coefficients
from ..ops import guard
from ..ops.torch import BATCH_NORM, find
from . import Run, can_attend, changed_layer, has_spec, is_kind, replaced_methods
from .torch_arrays import check_stored, used_tensor
from .torch_modes import mode_set
from .torch_modes import restored_modes as restored_modes

# Dtypes passed to `make`, for blocks without arrays
CREATION_DTYPES: Final[WeakKeyDictionary[nn.Module, torch.dtype]] = WeakKeyDictionary()


def read_checkpoint(file: BinaryIO) -> Any:
    """Return what torch.save wrote to a file, on the CPU. Raise an error for anything but arrays and containers."""
    return torch.load(file, map_location="cpu", weights_only=True)


def make(cls: type[Any], config: Mapping[str, Any], dtype: str) -> Any:
    """Return a block of class `cls` whose weights have `dtype`. Raise ValueError if they are on the meta device."""
    block = cls(**config).to(getattr(torch, dtype))
    if not block.spec.weights:
        CREATION_DTYPES[block] = getattr(torch, dtype)
    if any(parameter.is_meta for parameter in block.parameters()):
        raise ValueError(
            f"expected a device with storage for {cls.__name__}, got the meta device: leave"
            " `with torch.device('meta')`, or call torch.set_default_device('cpu')"
        )
    return block


def dtype(block: Any) -> str:
    """Return the name of the widest dtype of the weights; for a block without weights, that of its inputs."""
    stored_dtypes = [getattr(torch, name) for name in dtypes(block).values()]   # norms may be wider than other layers
    return _numpy_name(reduce(torch.promote_types, stored_dtypes) if stored_dtypes else _input_options(block)["dtype"])


@torch.no_grad()
def dtypes(block: Any) -> dict[str, str]:
    """Return the dtype of every array by canonical name."""
    return {name: _numpy_name(used_tensor(block, name).dtype) for name in block.spec.weights}


def storage(dtype: str) -> str:
    """Return the dtype in which the backend stores arrays of `dtype`."""
    return dtype


def precision(dtype: str) -> str:
    """Return the dtype in which the backend computes with arrays of `dtype`."""
    return dtype


@torch.no_grad()
def read(block: Any) -> dict[str, Array]:
    """Return copies of the arrays by canonical name."""
    return {name: to_array(used_tensor(block, name)).reshape(w.shape) for name, w in block.spec.weights.items()}


@torch.no_grad()
def write(block: Any, arrays: Mapping[str, Array]) -> None:
    """Write checked arrays, by canonical name, to a block."""
    for name in arrays:
        check_stored(block, name, used_tensor(block, name))
    for name, array in arrays.items():
        tensor = find(block, name)
        tensor.copy_(torch.from_numpy(contiguous(array)).reshape(tensor.shape))


def check_layers(block: Any, cls: type[Any]) -> None:
    """Raise ValueError unless a block has the layers that its class creates."""
    block = getattr(block, "_orig_mod", block)   # module inside torch.compile
    if getattr(block, "fused", False):
        find(block, next(iter(block.spec.weights)))   # raises the error
    expected = dict(_reference(block, cls).named_modules(remove_duplicate=False))
    modules = block.named_modules(remove_duplicate=False)
    # without wrappers of torch.compile
    modules_by_path = {path.replace("._orig_mod", ""): module for path, module in modules}
    for path in {**expected, **modules_by_path}:
        if path not in expected and "parametrizations" in path.split("."):
            continue
        created, got = expected.get(path), modules_by_path.get(path)
        if created is None or got is None or not _is_kind(got, kind := type(created)):
            raise changed_layer(path, block, _described(created), _described(got))
        if kind.extra_repr(got) != created.extra_repr():
            raise changed_layer(path, block, _described(created), _described(got))
        if replaced := replaced_methods(got, nn.Module, "forward"):
            raise changed_layer(path, block, _described(created), f"one whose {replaced[0]} was replaced")


@torch.no_grad()
def attention(block: Any, inputs: Sequence[Array]) -> Coefficients:
    """Return the coefficients for these inputs, in eval mode."""
    with mode_set(block, training=False):
        return map_coefficients(to_array, block.attention(*(to_tensor(x, block) for x in inputs)))


@torch.no_grad()
def forward(block: Any, inputs: Sequence[Array], training: bool) -> Array:
    """Return the output (N, C, *S) for these inputs."""
    with mode_set(block, training):
        return to_array(block(*(to_tensor(x, block) for x in inputs)))


def run(block: Any, inputs: Sequence[Array], cotangent: Array, training: bool) -> Run:
    """Return the output of a forward pass, and the gradients of sum(output * cotangent)."""
    tensors = [to_tensor(x, block).requires_grad_() for x in inputs]
    names = [name for name, w in block.spec.weights.items() if w.trainable]
    y = block.train(training)(*tensors)
    sources = [*tensors, *(find(block, name) for name in names)]
    gradients = [to_array(gradient) for gradient in torch.autograd.grad(y, sources, to_tensor(cotangent, block))]
    by_name = dict(zip(names, gradients[len(tensors) :], strict=True))
    by_name = {name: gradient.reshape(block.spec.weights[name].shape) for name, gradient in by_name.items()}
    return Run(to_array(y), tuple(gradients[: len(tensors)]), by_name)


def train(block: Any, inputs: Sequence[Array], cotangent: Array, steps: int, rate: float) -> None:
    """Train a block in place by `steps` steps of SGD with learning rate `rate` on sum(output * cotangent)."""
    parameters = list(block.parameters())
    optimizer = torch.optim.SGD(parameters or [torch.zeros(1)], lr=rate)   # SGD refuses an empty list
    block.train()
    for _ in range(steps):
        optimizer.zero_grad()
        y = block(*(to_tensor(x, block) for x in inputs))
        if y.requires_grad:   # False for a block without parameters
            (y * to_tensor(cotangent, block)).sum().backward()
        optimizer.step()


def place(model: Any) -> Any:
    """Return the model on a GPU if there is one."""
    return model.cuda() if torch.cuda.is_available() else model


def blocks(model: Any) -> dict[str, Any]:
    """Return every block of a model by its path. Raise ValueError for DataParallel on several devices."""
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:   # each device has a part of the batch
            fix = "pass its attribute `module`, the model on the first device"
            raise ValueError(f"expected a model on one device, got DataParallel on {len(module.device_ids)}: {fix}")
    return {path: module for path, module in model.named_modules() if can_attend(module)}


WRAPPERS: Final = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)   # hold a model as `module`


def parts(model: Any) -> dict[str, Any]:
    """Return the outermost blocks, attached blocks and networks of a model by path."""
    outermost: dict[str, Any] = {}
    for path, module in model.named_modules():
        prefixes = tuple(f"{outer_path}." if outer_path else "" for outer_path in outermost)
        is_attached = isinstance(module, IdentityStart) and has_spec(module.block)
        if (is_attached or has_spec(module)) and not path.startswith(prefixes):
            outermost[path] = module
    wrapped = {f"{path}.module".lstrip(".") for path, module in model.named_modules() if isinstance(module, WRAPPERS)}
    return {_without_wrappers(path, wrapped): module for path, module in outermost.items()}


def _without_wrappers(path: str, wrapped: set[str]) -> str:
    """Return a path without the names that wrappers add to it: "_orig_mod" of torch.compile, and "module".

    wrapped: paths of the modules inside wrappers such as DataParallel, which end in "module".
    """
    names = path.split(".")
    paths = [".".join(names[: i + 1]) for i in range(len(names))]
    return ".".join(
        name for name, path in zip(names, paths, strict=True) if name != "_orig_mod" and path not in wrapped
    )


def gamma(holder: Any) -> tuple[Array, str]:
    """Return the weight `gamma` of `holder`, an IdentityStart, and the name of its dtype."""
    return to_array(holder.gamma), _numpy_name(holder.gamma.dtype)


@torch.no_grad()
def set_gamma(holder: Any, array: Array) -> None:
    """Write an array of shape (1,) to the weight `gamma` of `holder`, an IdentityStart."""
    holder.gamma.copy_(torch.from_numpy(contiguous(array)))


def coefficients(tensor: Any, block: Any) -> Array | None:
    """Return coefficients as a float32 or float64 array; None for a traced tensor or one without values."""
    if guard.is_traced():
        return None
    if not isinstance(tensor, Tensor) or guard.has_no_numbers(tensor):
        return None
    return to_array(tensor if tensor.dtype == torch.float64 else tensor.float())


ACTIVE: Final[list[None]] = []   # has one element for every active `eager`
STANCE: Final = ExitStack()
LOCK: Final = Lock()             # the stance of torch.compiler is common to all threads


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled functions eagerly during the `with` block."""
    if "torch._dynamo" not in sys.modules:   # nothing is compiled yet, and loading it takes a second
        yield
        return
    with LOCK:
        if not ACTIVE:   # set once: contexts may end in any order, and torch does not count them
            STANCE.enter_context(torch.compiler.set_stance("force_eager"))
        ACTIVE.append(None)
    try:
        yield
    finally:
        with LOCK:
            ACTIVE.pop()
            if not ACTIVE:
                STANCE.close()


def to_array(tensor: Tensor) -> Array:
    """Return a C-contiguous NumPy copy on the CPU; bfloat16, which NumPy does not have, as float32."""
    tensor = tensor.detach().cpu().resolve_neg()
    return contiguous((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def to_tensor(array: Array, block: nn.Module) -> Tensor:
    """Return an array as a tensor on the device and in the dtype of the block's first parameter or buffer.

    For a block without parameters and buffers, the dtype is the one passed to `make`, else torch's default.
    """
    return torch.from_numpy(np.array(array)).to(**_input_options(block))


def _reference(block: nn.Module, cls: type[Any]) -> nn.Module:
    """Return a new block with the same arguments, on the meta device if possible."""
    try:
        with torch.device("meta"):
            return cast(nn.Module, cls(**block.spec.config()))   # type: ignore[operator, union-attr]
    except (NotImplementedError, RuntimeError):   # a third-party block that computes in its constructor
        with torch.random.fork_rng(devices=[]):
            return cast(nn.Module, cls(**block.spec.config()))   # type: ignore[operator, union-attr]


def _is_kind(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what class `kind` does; SyncBatchNorm counts as batch norm."""
    return is_kind(type(module), kind) or (isinstance(module, nn.SyncBatchNorm) and kind in BATCH_NORM.values())


def _numpy_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def _described(module: nn.Module | None) -> str:
    """Return the class and settings of a module as text."""
    return f"{type(module).__name__}({module.extra_repr()})" if module is not None else "nothing"


def _input_options(block: nn.Module) -> dict[str, Any]:
    """Return the keyword arguments device and dtype for the input tensors of a block, as in `to_tensor`."""
    for tensor in (*block.parameters(), *block.buffers()):
        if tensor.is_floating_point():
            return {"device": tensor.device, "dtype": tensor.dtype}
    return {"device": torch.get_default_device(), "dtype": CREATION_DTYPES.get(block, torch.get_default_dtype())}
