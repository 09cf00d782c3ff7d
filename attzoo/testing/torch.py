"""Contracts of PyTorch alone: what a block has to do for hooks, devices, autocast, torch.export and ONNX."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from .. import registry, settings
from . import CLOSE, HALF, hold, within
from .case import EPS, Case
from .oracle import expected_and_condition

ONNX: Final = ("onnx", "onnxscript", "onnxruntime")


def hooks(case: Case, backend: str) -> float:
    """Every layer that holds weights is called, so that hooks on it run."""
    block, x = _built(case)
    for name, part in block.named_modules():
        if part is block or not list(part.parameters(recurse=False)):
            continue
        calls: list[str] = []
        handle = part.register_forward_hook(lambda *_, calls=calls: calls.append("called"))
        with settings.kernels("eager"):
            block(*x)
        handle.remove()
        hold(bool(calls), f"{name} holds weights and is not called: hooks on it do not run; call the layer")
    return 0.0


def device_and_dtype(case: Case, backend: str) -> float:
    """`device` and `dtype` decide where and as what every parameter and buffer is made."""
    made = registry.get(case.name, backend="torch")(**case.spec.config(), device="meta", dtype=torch.float64)
    for name, tensor in made.state_dict().items():
        hold(tensor.is_meta, f"with device='meta', {name} is on {tensor.device}")
        wrong = tensor.is_floating_point() and tensor.dtype != torch.float64
        hold(not wrong, f"with dtype=torch.float64, {name} is {tensor.dtype}")
    return 0.0


def autocast(case: Case, backend: str) -> float:
    """Under autocast output and coefficients are the spec's, as far as bfloat16 tells."""
    block, x = _built(case)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = {"output": block(*x), "attention": block.attention(*x)}
    worst = 0.0
    for what, tensor in found.items():
        expected, moved = expected_and_condition(case, what)
        allowed = HALF * EPS["bfloat16"] * (moved + np.abs(expected).max())
        worst = max(worst, within(f"{what} under autocast", tensor.double().numpy() - expected, allowed))
    return worst


def export(case: Case, backend: str) -> float:
    """torch.export makes one program for all batch and spatial sizes, which computes what the block does."""
    block, x = _built(case)
    program = torch.export.export(block, tuple(x), dynamic_shapes=_dynamic(x)).module()
    return _same_at_other_sizes(block, x, program)


def onnx(case: Case, backend: str) -> float:
    """torch.onnx.export makes one model for all batch and spatial sizes, which computes what the block does."""
    import onnxruntime

    block, x = _built(case)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")   # the exporter's own
        file = Path(folder) / "block.onnx"
        with _only_errors(logging.getLogger("torch.onnx")):   # it warns where torchvision is not installed
            torch.onnx.export(block, tuple(x), file, dynamo=True, dynamic_shapes=_dynamic(x), verbose=False)
        session = onnxruntime.InferenceSession(file)
    names = [each.name for each in session.get_inputs()]

    def run(*xs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, dict(zip(names, (t.numpy() for t in xs), strict=True)))[0])

    return _same_at_other_sizes(block, x, run)


def contracts() -> list[Callable[[Case, str], float]]:
    """Those that what is installed can be held to."""
    return [hooks, device_and_dtype, autocast, export, *([onnx] if all(map(find_spec, ONNX)) else [])]


@contextmanager
def _only_errors(logger: logging.Logger) -> Iterator[None]:
    """Inside, a logger passes on errors alone."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _built(case: Case) -> tuple[Any, list[Tensor]]:
    """A float32 block in eval mode, and its inputs."""
    block = case.block("torch").float().eval()
    return block, [torch.from_numpy(x).float() for x in case.inputs()]


def _dynamic(xs: list[Tensor]) -> tuple[dict[int, Any], ...]:
    return tuple({axis: Dim.DYNAMIC for axis in range(x.ndim) if axis != 1} for x in xs)


def _same_at_other_sizes(block: Any, xs: list[Tensor], program: Callable[..., Tensor]) -> float:
    """At the sizes that the program was made with and at larger ones, each axis another."""
    worst = 0.0
    for more in (0, 1, 2):
        sizes = [(x.shape[0] + more, x.shape[1], *(n + more * i for i, n in enumerate(x.shape[2:], 1))) for x in xs]
        larger = [torch.linspace(-2, 3, int(np.prod(size))).sin().reshape(size) for size in sizes]
        with torch.no_grad():
            expected, got = block(*larger), program(*larger)
        error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        hold(error <= CLOSE, f"the exported program is off by {error:.3g} for inputs of {sizes}, allowed {CLOSE}")
        worst = max(worst, error / CLOSE)
    return worst
