"""Helpers of the other operations in PyTorch: checks of inputs, dtypes and devices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import is_tensor_like

from ..guard import EXACT


def require_tensors(*inputs: Any, role: str = "") -> None:
    """Raise TypeError unless the inputs are tensors or tensor-likes, such as proxies of torch.fx.

    role: end of the error message's "expected a torch.Tensor", such as " as shortcut".
    """
    for x in inputs:
        if not is_tensor_like(x):
            hint = ": convert it, as torch.as_tensor(x) does" if hasattr(x, "__array__") else ""
            raise TypeError(f"expected a torch.Tensor{role}, got {type(x).__name__}{hint}")


def not_dense(x: Tensor) -> TypeError:
    """Return the error for a tensor that is nested, sparse or of another layout that is not strided."""
    if x.is_nested:
        return TypeError("expected a dense tensor, got a nested one: call the block on each tensor in it")
    return TypeError(f"expected a dense tensor, got one of layout {x.layout}: convert it, as x.to_dense() does")


DTYPES = (torch.float16, torch.bfloat16, *EXACT)   # supported by all operations of a block


def factory_options(device: Any, dtype: Any) -> dict[str, Any]:
    """Return the keyword arguments device and dtype for layers of torch; None means the default of torch.

    Raises TypeError for a dtype that blocks do not support.
    """
    if dtype not in (None, *DTYPES):
        names = ", ".join(map(str, DTYPES))
        raise TypeError(f"dtype must be a floating-point torch.dtype, one of {names}, or None, got {dtype!r}")
    return {"device": device, "dtype": dtype}


def first_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of a module's first parameter, or None if it has no parameters."""
    for parameter in module.parameters():   # torch.compile of 2.6 cannot trace next() with a default
        return parameter.dtype
    return None


def in_dtype_of(x: Tensor, y: Tensor) -> Tensor:
    """Return y in the dtype of x.

    If the dtypes are equal no cast is made, because a traced cast would remain when the graph is converted to half
    precision. Under torch.fx, whose proxies have no dtype, the cast is always made.
    """
    return y if isinstance(x, Tensor) and y.dtype == x.dtype else y.to(x.dtype)


def upcast(x: Tensor) -> Tensor:
    """Return x in float32 if it has half precision, else x itself."""
    return x if x.dtype in EXACT else x.float()


def move_last(x: Tensor, axis: int = 1) -> Tensor:
    """Move the last axis to position `axis`.

    torch.onnx.export with dynamo=False writes the index -1 of `x.movedim(-1, axis)` to the model, which is invalid.
    """
    return x.movedim(x.ndim - 1, axis)
