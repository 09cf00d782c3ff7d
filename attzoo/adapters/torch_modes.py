"""Set and restore the training mode of torch modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Restore the training mode of every module at the end of the `with` block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def mode_set(block: nn.Module, training: bool) -> Iterator[None]:
    """Set the training mode of every module during the `with` block, and restore it afterwards."""
    with restored_modes(block):
        block.train(training)
        yield
