"""Other libraries' blocks that compute what ours do, built from the sources that our blocks list."""

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
    """A source's block for our spec, called as ours is, holding these arrays, by our canonical names.

    Raises ModuleNotFoundError where its library is absent.
    """
    block: nn.Module = getattr(load(source.module), source.class_name)(**source.arguments(spec))
    state = block.state_dict()
    for name, array in arrays.items():
        target = state[source.names[name]]
        target.copy_(torch.from_numpy(array).reshape(target.shape))
    if not (source.inputs or source.resize):
        return block
    return CalledAsOurs(block, source, info(registry.name_of(spec)).inputs)


class CalledAsOurs(nn.Module):
    """A source's block, called with our inputs in our order; `names` are theirs."""

    def __init__(self, inner: nn.Module, source: Source, names: Sequence[str]) -> None:
        super().__init__()
        self.inner, self.resize = inner, source.resize
        self.order = [names.index(name) for name in source.inputs or names]

    def forward(self, x: Tensor, *others: Tensor) -> Any:
        if self.resize:
            others = tuple(resized(other, x) for other in others)
        inputs = (x, *others)
        return self.inner(*(inputs[i] for i in self.order))


def resized(other: Tensor, x: Tensor) -> Tensor:
    """Another input, (N, G, *S), resized linearly to the spatial size of x."""
    if other.shape[2:] == x.shape[2:]:
        return other
    return F.interpolate(other, x.shape[2:], mode=("linear", "bilinear", "trilinear")[x.ndim - 3])


def load(module: str) -> Any:
    """A peer's module. Raises ModuleNotFoundError where its library is absent."""
    if module.partition(".")[0] in ("timm", "torchvision"):
        load_torchvision()
    if module.startswith("monai"):
        with suppress(ImportError):
            import_module("triton")   # MONAI may load TensorFlow, and triton after TensorFlow aborts the process
    with suppress_stderr():
        return import_module(module)


@contextmanager
def suppress_stderr() -> Iterator[None]:
    """Nothing reaches the process's standard error meanwhile: TensorFlow greets there, whatever it is told."""
    sys.stderr.flush()
    own, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(own, 2)
        os.close(own)
        os.close(nowhere)


def load_torchvision() -> None:
    """Import torchvision, which timm imports too, also beside a torch that it was not built for.

    On import it describes two operators of its compiled half, and fails where that half cannot load, as beside a
    CPU build of torch. Declaring the two, without bodies, is enough: no block here uses them.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            TORCHVISION.define(schema)   # type: ignore[no-untyped-call]
        import_module("torchvision")


# What it declares lives as long as it does.
TORCHVISION: Final = torch.library.Library("torchvision", "FRAGMENT")   # type: ignore[no-untyped-call]
