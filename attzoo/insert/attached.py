"""How a block that is attached to a torch module is stored, called and recognised."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from ..adapters import can_attend
from ..blocks.torch import IdentityStart as IdentityStart

CHILD: Final = "attention"   # the name of an attached block as a child of its module
MARK: Final = "has_attached_block"   # an attribute of every module with an attached block


def attend_to_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return the output of the attached block for the output of its module. A forward hook of the module."""
    attended: Tensor = _block(module)(output)
    return attended


def attend_to_skip(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return the output of a skip connection, with the attached block applied to its part x. A forward hook.

    The output is x and y, concatenated along axis 1. A block with a gating signal gets y as that signal.
    """
    block, x = _block(module), args[0]
    y = output[:, x.shape[1] :]
    gating = (y,) if _takes_gating(block) else ()
    return torch.cat([block(x, *gating), y], dim=1)


HOOKS: Final = (attend_to_output, attend_to_skip)


def _block(module: nn.Module) -> nn.Module:
    """Return the block attached to a module. Raise RuntimeError if the module has none any more."""
    block = getattr(module, CHILD, None)
    if block is None:   # torch.ao.quantization.fuse_modules moves the hook to the module that it makes
        hint = "fuse or quantize the network first, and attach blocks then"
        raise RuntimeError(f"expected the attached block in {type(module).__name__}, got a module without it: {hint}")
    assert isinstance(block, nn.Module)
    return block


def _takes_gating(block: nn.Module) -> bool:
    """Whether an attached block takes a gating signal."""
    spec: Any = without_start(block).spec
    return len(spec.inputs) == 2


def without_start(block: nn.Module) -> nn.Module:
    """Return the block inside an IdentityStart; any other block itself."""
    return block.block if isinstance(block, IdentityStart) else block


def is_attached(module: nn.Module) -> bool:
    """Whether a module has a block that `attach` added."""
    if MARK not in vars(module):
        return False
    child = dict(module.named_children()).get(CHILD)
    return isinstance(child, IdentityStart) or can_attend(child)


def is_sequence(module: nn.Module) -> bool:
    """Whether a module is an nn.Sequential, which calls all children, also one that is added later."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def child_path(path: str) -> str:
    """Return the path of the block attached to the module at a path."""
    return f"{path}.{CHILD}".lstrip(".")
