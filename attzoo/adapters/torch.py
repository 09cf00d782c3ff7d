"""Reaching into a torch block."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ..contract import Array, contiguous
from ..ops.torch import find
from . import Run, can_attend


def make(cls: type[Any], config: Mapping[str, Any], dtype: str) -> Any:
    return cls(**config).to(getattr(torch, dtype))


def dtype(block: Any) -> str:
    widest = reduce(torch.promote_types, (p.dtype for p in block.parameters()))   # norms may be kept wider
    return str(widest).removeprefix("torch.")


def precision(dtype: str) -> str:
    return dtype


def read(block: Any) -> dict[str, Array]:
    return {name: to_array(find(block, name)).reshape(w.shape) for name, w in block.spec.weights.items()}


@torch.no_grad()
def write(block: Any, arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        tensor = find(block, name)
        tensor.copy_(torch.from_numpy(np.array(array)).reshape(tensor.shape))


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
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()   # type: ignore[attr-defined]
    if traced or tensor.is_meta:
        return None
    return to_array(tensor if tensor.dtype == torch.float64 else tensor.float())


INSIDE: Final[list[None]] = []   # one for each that is inside `eager`
STANCE: Final = ExitStack()


@contextmanager
def eager() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:   # a second to load, and nothing has been compiled yet
        yield
        return
    if not INSIDE:   # torch's switch does not count, and those inside may leave in another order than they came in
        STANCE.enter_context(torch.compiler.set_stance("force_eager"))
    INSIDE.append(None)
    try:
        yield
    finally:
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


def _first(block: nn.Module) -> Tensor:
    return next(block.parameters())
