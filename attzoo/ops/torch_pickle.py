"""Update PyTorch blocks that were pickled by an earlier version of attzoo."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, Final

from ..contract import shorten, upgraded

if TYPE_CHECKING:
    from torch import nn

FORMAT: Final = 1              # incremented when the contents of a pickled block change
KEY: Final = "attzoo_format"   # key of FORMAT in the state; missing in the oldest pickles
OURS: Final = __name__.partition(".")[0]


def update(block: Any) -> None:
    """Update a block that was pickled by an earlier version, in place. Changes that a user made to layers stay.

    Raises:
        ValueError: the spec no longer accepts the arguments, or the class now creates a submodule of another type or
            with other tensors.

    """
    import torch

    try:
        block.spec = type(block.spec)(**upgraded(type(block.spec), block.spec.config()))
    except (ValueError, TypeError, AttributeError) as err:
        raise _refusal(block, str(err)) from err
    try:
        with torch.device("meta"):
            new_block = type(block)(**block.spec.config())
    except (TypeError, NotImplementedError, RuntimeError):   # a subclass that cannot be made like this
        return
    if getattr(block, "fused", False):   # folding norms has replaced layers
        return
    for path, new_part in new_block.named_modules():
        _update_part(block, path, new_part)


def _update_part(block: Any, path: str, new_part: nn.Module) -> None:
    """Add the attributes of `new_part`, a submodule of a new block, to the block's submodule at `path`, in place.

    Raises ValueError if the submodule is missing, is of another type, or lacks a tensor.
    """
    try:
        part = block.get_submodule(path)
    except AttributeError:
        raise _refusal(block, f"the class now has a submodule {path}, {type(new_part).__name__}") from None
    is_ours = any(type(module).__module__.partition(".")[0] == OURS for module in (part, new_part))
    if is_ours and type(part) is not type(new_part):
        raise _refusal(block, f"{path} is now of type {type(new_part).__name__}, not {type(part).__name__}")
    if not is_ours:
        return
    tensors = dict(new_part.named_parameters(recurse=False)) | dict(new_part.named_buffers(recurse=False))
    if missing := [name for name in tensors if not hasattr(part, name)]:
        raise _refusal(block, f"{path} now has a tensor {missing[0]}")
    for name, value in vars(new_part).items():
        if not name.startswith("_") and (name not in vars(part) or _is_plan(value)):
            setattr(part, name, value)


def _is_plan(value: Any) -> bool:
    """Whether the value of an attribute describes the computation: a spec, or a tuple of dataclasses such as `Unit`."""
    return is_dataclass(value) or (isinstance(value, tuple) and bool(value) and all(map(is_dataclass, value)))


def _refusal(block: Any, reason: str) -> ValueError:
    """Return the error for a block that cannot be updated; it says how to convert the block."""
    return ValueError(
        f"expected a {type(block).__name__} pickled by this version of attzoo, got a pickle of an earlier version: "
        f"{shorten(reason)}. Unpickle the block with the version of attzoo that pickled it, "
        "call attzoo.save(block, file) there, and attzoo.load(file, backend='torch') here"
    )
