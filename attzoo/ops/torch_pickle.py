"""Blocks of PyTorch that an earlier version pickled: brought up to date, or refused with how to move them."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, Final

from ..contract import brief, upgraded

if TYPE_CHECKING:
    from torch import nn

FORMAT: Final = 1              # goes up when what a pickle of a block holds changes
KEY: Final = "attzoo_format"   # of it in the state; none in pickles of before there was a number
OURS: Final = __name__.partition(".")[0]


def update(block: Any) -> None:
    """Bring a block up to date that an earlier version has pickled.

    Changes that a user made to layers stay. Raises ValueError where a part of it is made in another way now.
    """
    import torch

    try:
        block.spec = type(block.spec)(**upgraded(type(block.spec), block.spec.config()))
    except (ValueError, TypeError, AttributeError) as err:
        raise _refusal(block, str(err)) from err
    try:
        with torch.device("meta"):
            fresh = type(block)(**block.spec.config())
    except (TypeError, NotImplementedError, RuntimeError):   # a subclass with other arguments, or one that computes
        return
    if getattr(block, "fused", False):   # for inference, its layers are others on purpose
        return
    for path, made in fresh.named_modules():
        _update_part(block, path, made)


def _update_part(block: Any, path: str, made: nn.Module) -> None:
    """Bring one part up to date with what its class makes now."""
    try:
        part = block.get_submodule(path)
    except AttributeError:
        raise _refusal(block, f"{path} is a part now, {type(made).__name__}") from None
    is_ours = any(type(each).__module__.partition(".")[0] == OURS for each in (part, made))
    if is_ours and type(part) is not type(made):
        raise _refusal(block, f"{path} is {type(made).__name__} now, not {type(part).__name__}")
    if not is_ours:
        return
    tensors = dict(made.named_parameters(recurse=False)) | dict(made.named_buffers(recurse=False))
    if lost := [name for name in tensors if not hasattr(part, name)]:
        raise _refusal(block, f"{path} holds {lost[0]} now")
    for name, value in vars(made).items():
        if not name.startswith("_") and (name not in vars(part) or _is_plan(value)):
            setattr(part, name, value)


def _is_plan(value: Any) -> bool:
    """Whether a value is a spec, or rows of the table of a network: what has no numbers of its own."""
    return is_dataclass(value) or (isinstance(value, tuple) and bool(value) and all(map(is_dataclass, value)))


def _refusal(block: Any, what: str) -> ValueError:
    move = "there attzoo.save(block, file), and here attzoo.load(file, backend='torch')"
    return ValueError(
        f"expected a {type(block).__name__} pickled by this version of attzoo, got an earlier one's: {brief(what)}. "
        f"Open it with the version that pickled it, and move its weights: {move}"
    )
