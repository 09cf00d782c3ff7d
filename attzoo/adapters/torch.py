"""Reaching into a torch block."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import reduce
from threading import Lock
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..contract import Array, contiguous
from ..ops import guard
from ..ops.torch import BATCH_NORM, DTYPES, find
from . import Run, can_attend, changed, computed, is_kind, missing, replaced_methods, same_shape

REMOVE: Final = {   # what computes a tensor before every call -> what makes it a stored one again
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
    BasePruningMethod: "torch.nn.utils.prune.remove",
}


def make(cls: type[Any], config: Mapping[str, Any], dtype: str) -> Any:
    block = cls(**config).to(getattr(torch, dtype))
    if any(p.is_meta for p in block.parameters()):
        raise ValueError(
            f"expected to make {cls.__name__} on a device that holds numbers, got the meta device: leave"
            " torch.device('meta'), or torch.set_default_device('cpu')"
        )
    return block


def dtype(block: Any) -> str:
    found = (getattr(torch, name) for name in dtypes(block).values())   # norms may be kept wider than the rest
    return _numpy_name(reduce(torch.promote_types, found))


@torch.no_grad()
def dtypes(block: Any) -> dict[str, str]:
    return {name: _numpy_name(_tensor(block, name).dtype) for name in block.spec.weights}


def storage(dtype: str) -> str:
    return dtype


def precision(dtype: str) -> str:
    return dtype


@torch.no_grad()
def read(block: Any) -> dict[str, Array]:
    return {name: to_array(_tensor(block, name)).reshape(w.shape) for name, w in block.spec.weights.items()}


@torch.no_grad()
def write(block: Any, arrays: Mapping[str, Array]) -> None:
    for name in arrays:
        _check_stored(block, name, _tensor(block, name))
    for name, array in arrays.items():
        tensor = find(block, name)
        tensor.copy_(torch.from_numpy(contiguous(array)).reshape(tensor.shape))


def check_layers(block: Any, cls: type[Any]) -> None:
    block = getattr(block, "_orig_mod", block)   # of torch.compile
    if getattr(block, "fused", False):
        find(block, next(iter(block.spec.weights)))   # which says why not
    expected = dict(_reference(block, cls).named_modules(remove_duplicate=False))
    modules = block.named_modules(remove_duplicate=False)
    found = {path.replace("._orig_mod", ""): module for path, module in modules}   # without those of torch.compile
    for path in {**expected, **found}:
        if path not in expected and "parametrizations" in path.split("."):
            continue
        made, got = expected.get(path), found.get(path)
        if made is None or got is None or not _is_kind(got, kind := type(made)):
            raise changed(path, block, _described(made), _described(got))
        if kind.extra_repr(got) != made.extra_repr():
            raise changed(path, block, _described(made), _described(got))
        if replaced := replaced_methods(got, nn.Module, "forward"):
            raise changed(path, block, _described(made), f"one whose {replaced[0]} was replaced")


@torch.no_grad()
def attention(block: Any, inputs: Sequence[Array]) -> Array:
    with _mode(block, training=False):
        return to_array(block.attention(*(to_tensor(x, block) for x in inputs)))


@torch.no_grad()
def forward(block: Any, inputs: Sequence[Array], training: bool) -> Array:
    with _mode(block, training):
        return to_array(block(*(to_tensor(x, block) for x in inputs)))


def run(block: Any, inputs: Sequence[Array], cotangent: Array, training: bool) -> Run:
    tensors = [to_tensor(x, block).requires_grad_() for x in inputs]
    names = [name for name, w in block.spec.weights.items() if w.trainable]
    y = block.train(training)(*tensors)
    wanted = [*tensors, *(find(block, name) for name in names)]
    gradients = [to_array(g) for g in torch.autograd.grad(y, wanted, to_tensor(cotangent, block))]
    by_name = dict(zip(names, gradients[len(tensors) :], strict=True))
    by_name = {name: g.reshape(block.spec.weights[name].shape) for name, g in by_name.items()}
    return Run(to_array(y), tuple(gradients[: len(tensors)]), by_name)


def train(block: Any, inputs: Sequence[Array], cotangent: Array, steps: int, rate: float) -> None:
    optimizer = torch.optim.SGD(block.parameters(), lr=rate)
    block.train()
    for _ in range(steps):
        optimizer.zero_grad()
        y = block(*(to_tensor(x, block) for x in inputs))
        (y * to_tensor(cotangent, block)).sum().backward()
        optimizer.step()


def place(model: Any) -> Any:
    return model.cuda() if torch.cuda.is_available() else model


def blocks(model: Any) -> dict[str, Any]:
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:   # copies, each with a part of the batch
            raise ValueError(f"expected a model on one device, got DataParallel on {len(module.device_ids)}")
    return {path: module for path, module in model.named_modules() if can_attend(module)}


def coefficients(tensor: Any, block: Any) -> Array | None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():   # type: ignore[attr-defined]
        return None
    if not isinstance(tensor, Tensor) or guard.has_no_numbers(tensor):
        return None
    return to_array(tensor if tensor.dtype == torch.float64 else tensor.float())


INSIDE: Final[list[None]] = []   # one for each that is inside `eager`
STANCE: Final = ExitStack()
LOCK: Final = Lock()             # torch's switch is one for all threads


@contextmanager
def eager() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:   # a second to load, and nothing has been compiled yet
        yield
        return
    with LOCK:
        if not INSIDE:   # torch's switch does not count, and those inside may leave in another order than they came in
            STANCE.enter_context(torch.compiler.set_stance("force_eager"))
        INSIDE.append(None)
    try:
        yield
    finally:
        with LOCK:
            INSIDE.pop()
            if not INSIDE:
                STANCE.close()


def to_array(tensor: Tensor) -> Array:
    """A C-contiguous NumPy copy, on the CPU; bfloat16, which NumPy lacks, as float32."""
    tensor = tensor.detach().cpu().resolve_neg()
    return contiguous((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def to_tensor(array: Array, block: nn.Module) -> Tensor:
    """A tensor on the block's device, in its dtype."""
    like = _first(block)
    return torch.from_numpy(np.array(array)).to(device=like.device, dtype=like.dtype)


@contextmanager
def _mode(block: nn.Module, training: bool) -> Iterator[None]:
    """Every module in training or out of it inside, and afterwards each as it was."""
    were = [(module, module.training) for module in block.modules()]
    block.train(training)
    try:
        yield
    finally:
        for module, was in were:
            module.training = was


def _tensor(block: Any, name: str) -> Tensor:
    """The tensor of canonical `name` as its layer would use it now."""
    try:
        layer, leaf = _layer(block, name)
        with _mode(layer, training=False) if parametrize.is_parametrized(layer, leaf) else nullcontext():
            tensor = find(block, name)   # in training, spectral norm would go a step further
    except AttributeError as err:
        raise missing(name, block, err) from err
    _check_usable(block, name, tensor, layer, leaf)
    hook = _hook(layer, leaf)   # which computes the tensor before every call, and left it there in the last one
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(layer, do_power_iteration=False)
    if isinstance(hook, WeightNorm):
        return cast(Tensor, hook.compute_weight(layer))
    return cast(Tensor, hook.apply_mask(layer)) if isinstance(hook, BasePruningMethod) else tensor


def _check_usable(block: Any, name: str, tensor: Any, layer: nn.Module, leaf: str) -> None:
    """Raise ValueError unless `leaf` of a layer is a tensor of the spec's shape that the layer computes with."""
    shape = block.spec.weights[name].shape
    if not isinstance(tensor, Tensor):
        codes = callable(tensor)   # layers that torch has quantized have methods of these names
        quantized = f"codes that {type(layer).__name__} holds: take the weights before the block is quantized"
        raise missing(name, block, quantized if codes else type(tensor).__name__)
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise missing(name, block, f"an array that {type(layer).__name__} makes when it is first called: call it once")
    if tensor.is_meta:
        raise missing(name, block, "a tensor without numbers on the meta device: block.to_empty(device=...) first")
    if hasattr(tensor, "full_tensor"):
        raise missing(name, block, "a part of a sharded tensor: block.unshard() first, where FSDP has sharded it")
    if not same_shape(tensor.shape, shape):
        raise missing(name, block, f"shape {tuple(tensor.shape)} for {shape}")
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
        raise missing(name, block, f"{tensor.dtype} in layout {tensor.layout}")
    own = isinstance(getattr(type(layer), leaf, None), property) and not parametrize.is_parametrized(layer, leaf)
    if own or hasattr(layer, "weight_fake_quant"):
        remedy = "merge it first, as peft's merge_and_unload does, or take the weights before it is put in"
        raise missing(name, block, f"that of {type(layer).__name__}, which computes with another: {remedy}")


def _check_stored(block: Any, name: str, tensor: Tensor) -> None:
    """Raise ValueError unless a tensor that is written to stays what it is then."""
    layer, leaf = _layer(block, name)
    path = name.rpartition(".")[0]
    if parametrize.is_parametrized(layer, leaf):
        kinds = ", ".join(type(each).__name__ for each in layer.parametrizations[leaf])   # type: ignore[index]
        remedy = f"torch.nn.utils.parametrize.remove_parametrizations(block.{path}, {leaf!r}) first"
        raise computed(name, block, f"a parametrization ({kinds})", remedy)
    if (hook := _hook(layer, leaf)) is not None:
        remove = next(remove for kind, remove in REMOVE.items() if isinstance(hook, kind))
        raise computed(name, block, type(hook).__name__, f"{remove}(block.{path}, {leaf!r}) first")
    stored = dict(layer.named_parameters("", False, False)) | dict(layer.named_buffers("", False, False))
    if leaf not in stored:
        raise computed(name, block, "something else", f"make block.{name} a parameter first")
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise computed(name, block, "torch.inference_mode", "make the block outside of it, or write inside it")
    if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise computed(name, block, "an expanded tensor", f"block.{name} = torch.nn.Parameter(tensor.clone()) first")


def _layer(block: Any, name: str) -> tuple[nn.Module, str]:
    """The layer that holds canonical `name`, and its word for it."""
    path, _, leaf = name.rpartition(".")
    return block.get_submodule(path), {"mean": "running_mean", "var": "running_var"}.get(leaf, leaf)


def _hook(layer: nn.Module, leaf: str) -> Any:
    """What computes a layer's tensor before every call, of those that torch.nn.utils has; None where nothing does."""
    for hook in guard.forward_pre_hooks(layer):
        tensors = getattr(hook, "name", None), getattr(hook, "_tensor_name", None)   # of a norm, of pruning
        if isinstance(hook, tuple(REMOVE)) and leaf in tensors:
            return hook
    return None


def _reference(block: nn.Module, cls: type[Any]) -> nn.Module:
    """A block of the same arguments as it was made, without numbers."""
    try:
        with torch.device("meta"):
            return cast(nn.Module, cls(**block.spec.config()))   # type: ignore[operator, union-attr]
    except (NotImplementedError, RuntimeError):   # a third party's, which computes when it is made
        with torch.random.fork_rng(devices=[]):
            return cast(nn.Module, cls(**block.spec.config()))   # type: ignore[operator, union-attr]


def _is_kind(module: nn.Module, kind: type[nn.Module]) -> bool:
    return is_kind(type(module), kind) or (isinstance(module, nn.SyncBatchNorm) and kind in BATCH_NORM.values())


def _numpy_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _described(module: nn.Module | None) -> str:
    return f"{type(module).__name__}({module.extra_repr()})" if module is not None else "nothing"


def _first(block: nn.Module) -> Tensor:
    return next(block.parameters())
