"""Build equivalent blocks of other libraries from the sources that attzoo's blocks list."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attzoo import info, registry
from attzoo.contract import Array, Source

INSTALL: Final = "pip install --no-deps timm==1.0.31 monai==1.6.1 torchvision==0.28.0"   # beside torch 2.13


def build_peer(source: Source, spec: Any, arrays: Mapping[str, Array]) -> nn.Module:
    """Build a source's block with these weights, with the inputs of attzoo's block.

    Args:
        source: the other library's block.
        spec: spec of attzoo's block.
        arrays: weights by attzoo's canonical names.

    Raises:
        ModuleNotFoundError: the library is not installed.

    """
    block: nn.Module = getattr(load(source.module), source.class_name)(**source.arguments(spec))
    state = block.state_dict()
    for name, array in arrays.items():
        target = state[source.names[name]]
        target.copy_(torch.from_numpy(array).reshape(target.shape))
    if not (source.inputs or source.resize):
        return block
    return ReorderedInputs(block, source, info(registry.name_of(spec)).inputs)


class ReorderedInputs(nn.Module):
    """Another library's block that takes its inputs in the order of attzoo's block.

    Args:
        inner: the other library's block.
        source: its description.
        names: attzoo's names of the inputs, in the order of attzoo's block.

    """

    def __init__(self, inner: nn.Module, source: Source, names: Sequence[str]) -> None:
        super().__init__()
        self.inner, self.resize = inner, source.resize
        self.order = [names.index(name) for name in source.inputs or names]

    def forward(self, x: Tensor, *further_inputs: Tensor) -> Any:
        """Return the output of the source's block for inputs in the order of attzoo's block."""
        if self.resize:
            further_inputs = tuple(resize_to(tensor, x) for tensor in further_inputs)
        inputs = (x, *further_inputs)
        return self.inner(*(inputs[i] for i in self.order))


def resize_to(tensor: Tensor, x: Tensor) -> Tensor:
    """Resize an input, (N, G, *S), linearly to the spatial size of x."""
    if tensor.shape[2:] == x.shape[2:]:
        return tensor
    return F.interpolate(tensor, x.shape[2:], mode=("linear", "bilinear", "trilinear")[x.ndim - 3])


def load(module: str) -> Any:
    """Import a module of another library by name. Raises ModuleNotFoundError if the library is not installed."""
    if module.partition(".")[0] in ("timm", "torchvision"):
        load_torchvision()
    if module.startswith("monai"):
        with suppress(ImportError):
            import_module("triton")   # MONAI may import TensorFlow; triton after TensorFlow aborts the process
    with suppress_stderr():
        return import_module(module)


@contextmanager
def suppress_stderr() -> Iterator[None]:
    """Discard the process's standard error inside the context: TensorFlow's messages cannot be turned off."""
    sys.stderr.flush()
    saved_stderr, null_device = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved_stderr, 2)
        os.close(saved_stderr)
        os.close(null_device)


def load_torchvision() -> None:
    """Import torchvision, also with a torch build that it was not compiled for; timm imports it too.

    The torchvision of PyPI is compiled for CUDA: its library needs libtorch_cuda.so, which a CPU build of torch does
    not have. torchvision ignores that it cannot load the library, and its import then fails when it registers two
    operators of the library. Declaring the two operators is enough, because no block uses them.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            TORCHVISION.define(schema)   # type: ignore[no-untyped-call]
        import_module("torchvision")


# The declarations live as long as this object.
TORCHVISION: Final = torch.library.Library("torchvision", "FRAGMENT")   # type: ignore[no-untyped-call]
