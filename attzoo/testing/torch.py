"""Contracts of PyTorch blocks only: hooks, devices and dtypes, autocast, torch.export and ONNX."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from .. import registry, settings
from .case import EPS, Case
from .compare import EXPORT_TOLERANCE, HALF_TOLERANCE, ensure, within
from .oracle import attention_results, expected_and_condition

ONNX: Final = ("onnx", "onnxscript", "onnxruntime")


def hooks(case: Case, backend: str) -> float:
    """Check that every layer with weights is called, so that its hooks run; return 0."""
    block, x = _float32_block(case)
    for name, layer in block.named_modules():
        if layer is block or not list(layer.parameters(recurse=False)):
            continue
        calls: list[str] = []
        handle = layer.register_forward_hook(lambda *_, calls=calls: calls.append("called"))
        with settings.kernels("eager"):
            block(*x)
        handle.remove()
        ensure(bool(calls), f"expected the block to call its layer {name}, so that hooks run, got no call")
    return 0.0


def device_and_dtype(case: Case, backend: str) -> float:
    """Check that parameters and buffers have the device and dtype of the arguments `device` and `dtype`; return 0."""
    block = registry.get(case.name, backend="torch")(**case.spec.config(), device="meta", dtype=torch.float64)
    for name, tensor in block.state_dict().items():
        ensure(tensor.is_meta, f"expected {name} on the device 'meta' of the argument device, got {tensor.device}")
        has_dtype = not tensor.is_floating_point() or tensor.dtype == torch.float64
        ensure(has_dtype, f"expected {name} in torch.float64, the argument dtype, got {tensor.dtype}")
    return 0.0


def autocast(case: Case, backend: str) -> float:
    """Compare outputs and coefficients under bfloat16 autocast with the spec; return error / tolerance of bfloat16."""
    block, x = _float32_block(case)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        results = {"output": block(*x)} | attention_results(block.attention(*x))
    largest_error = 0.0
    for name, tensor in results.items():
        expected, condition = expected_and_condition(case, name)
        allowed = HALF_TOLERANCE * EPS["bfloat16"] * (condition + np.abs(expected).max())
        error = within(f"{name} under autocast", tensor.double().numpy() - expected, allowed)
        largest_error = max(largest_error, error)
    return largest_error


def export(case: Case, backend: str) -> float:
    """Compare one program of torch.export with the block at several batch and spatial sizes.

    Return error / tolerance.
    """
    block, x = _float32_block(_larger(case))
    program = torch.export.export(block, tuple(x), dynamic_shapes=_dynamic(x)).module()
    return _same_at_other_sizes(block, x, program)


def onnx(case: Case, backend: str) -> float:
    """Compare one model of torch.onnx.export with the block at several batch and spatial sizes.

    Return error / tolerance.
    """
    import onnxruntime

    block, x = _float32_block(_larger(case))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")   # deprecations inside the exporter
        file = Path(folder) / "block.onnx"
        with _only_errors(logging.getLogger("torch.onnx")):   # the exporter warns if torchvision is not installed
            torch.onnx.export(block, tuple(x), file, dynamo=True, dynamic_shapes=_dynamic(x), verbose=False)
        session = onnxruntime.InferenceSession(file)
    names = [node.name for node in session.get_inputs()]

    def run(*xs: Tensor) -> Tensor:
        """Return the output of the ONNX model."""
        return torch.from_numpy(session.run(None, dict(zip(names, (x.numpy() for x in xs), strict=True)))[0])

    return _same_at_other_sizes(block, x, run)


def contracts() -> list[Callable[[Case, str], float]]:
    """Return the contracts that can be checked with the installed packages."""
    return [hooks, device_and_dtype, autocast, export, *([onnx] if all(map(find_spec, ONNX)) else [])]


@contextmanager
def _only_errors(logger: logging.Logger) -> Iterator[None]:
    """Limit a logger to errors within a `with` block."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _float32_block(case: Case) -> tuple[Any, list[Tensor]]:
    """Return the block of the case in float32 and eval mode, and its inputs."""
    block = case.block("torch").float().eval()
    return block, [torch.from_numpy(x).float() for x in case.inputs()]


def _larger(case: Case) -> Case:
    """Return the case with inputs that are 8 pixels larger along each spatial axis, for exports.

    If a map inside a block had one pixel, a program of torch.export would be valid for such inputs only.
    """
    return replace(case, shapes=tuple((*shape[:2], *(size + 8 for size in shape[2:])) for shape in case.shapes))


def _dynamic(xs: list[Tensor]) -> tuple[dict[int, Any], ...]:
    """Return dynamic shapes for torch.export: every axis but the channels."""
    return tuple({axis: Dim.DYNAMIC for axis in range(x.ndim) if axis != 1} for x in xs)


def _same_at_other_sizes(block: Any, xs: list[Tensor], program: Callable[..., Tensor]) -> float:
    """Compare a program with its block at the sizes of the example and at two larger ones; return error / tolerance.

    Raises AssertionError if it is larger than 1.
    """
    largest_error = 0.0
    for growth in (0, 1, 2):
        shapes = [
            (x.shape[0] + growth, x.shape[1], *(n + growth * i for i, n in enumerate(x.shape[2:], 1))) for x in xs
        ]
        inputs = [torch.linspace(-2, 3, int(np.prod(shape))).sin().reshape(shape) for shape in shapes]
        with torch.no_grad():
            expected, got = block(*inputs), program(*inputs)
        error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        message = f"the exported program is off by {error:.3g} for inputs of {shapes}, allowed {EXPORT_TOLERANCE}"
        ensure(error <= EXPORT_TOLERANCE, message)
        largest_error = max(largest_error, error / EXPORT_TOLERANCE)
    return largest_error
