"""Helpers of the other operations in Keras: data formats, dtypes, and reductions over axes.

It loads triton before Keras, so import `keras` from here or from ops/keras.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...contract import choice, require, triton_first

triton_first()

import keras as keras  # noqa: E402
from keras import ops as ops  # noqa: E402

require("keras", keras.__version__, "3.13.1")   # loading a model with earlier versions can execute code

register = keras.saving.register_keras_serializable(package="attzoo")


def data_format_of(data_format: str | None) -> str:
    """Return the data format, "channels_last" or "channels_first"; None means the one of keras.config.

    Raises ValueError for other values.
    """
    value = keras.config.image_data_format() if data_format is None else data_format
    return str(choice("data_format", value, ("channels_last", "channels_first")))


def check_policy(policy: Any) -> None:
    """Raise ValueError unless the dtypes of a policy are floating-point dtypes and it is not quantized."""
    kinds = policy.variable_dtype, policy.compute_dtype
    if not all(keras.backend.is_float_dtype(kind) for kind in kinds):
        raise ValueError(f"dtype must be a floating-point dtype, such as 'float32', got {policy.name!r}")
    if getattr(policy, "quantization_mode", None):
        hint = "create the layer in a floating-point dtype, then call quantize() of the layer"
        raise ValueError(f"dtype must not be quantized, got {policy.name!r}: {hint}")


def in_dtype_of(x: Any, variable: Any) -> Any:
    """Return a variable in the dtype of x. Keras makes this cast only inside a layer's call."""
    return ops.cast(variable, x.dtype)


def wide(dtype: Any) -> str:
    """Return the dtype for statistics and coordinates of values of `dtype`: "float64" for float64, else "float32"."""
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def space(x: Any, channels_last: bool) -> tuple[int, ...]:
    """Return the indices of the spatial axes of x, (N, *S, C) or (N, C, *S)."""
    return tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))


def sizes(x: Any) -> tuple[Any, ...]:
    """Return the spatial sizes of (N, *S, C): integers if static, else scalar tensors."""
    return tuple(ops.shape(x))[1:-1]


def indices(formula: Callable[[Any, Any, Any], Any], old: Any, new: Any) -> Any:
    """Return formula(arange(new), old, new) as int32, for sizes `old` and `new` of an axis, computed with 64 bits.

    With 32 bits the product of a position and a size would overflow for axes of more than 46,340 pixels. JAX has no
    64-bit integers by default, so there the limit remains in an export with unknown sizes.
    """
    if isinstance(old, int) and isinstance(new, int) and keras.backend.backend() != "torch":
        return ops.convert_to_tensor(formula(np.arange(new, dtype=np.int64), old, new), "int32")
    kind = "int32" if keras.backend.backend() == "jax" else "int64"
    old, new = (ops.cast(n, kind) if ops.is_tensor(n) else n for n in (old, new))   # TensorFlow's are int32
    return ops.cast(formula(ops.arange(new, dtype=kind), old, new), "int32")


def to_last(x: Any, channels_last: bool) -> Any:
    """Return x as channels last, (N, *S, C). If `channels_last` is true, x already is and is returned itself."""
    return x if channels_last else ops.moveaxis(x, 1, -1)


def from_last(x: Any, channels_last: bool) -> Any:
    """Return x (N, *S, C) in the data format: x itself if `channels_last` is true, else (N, C, *S)."""
    return x if channels_last else ops.moveaxis(x, -1, 1)


def mean(x: Any, axis: Any, keepdims: bool = False) -> Any:
    """Return the mean over the axes `axis` in the dtype of x; keepdims as in keras.ops.mean.

    On JAX and torch, keras.ops.mean computes float64 in float32.
    """
    if keras.backend.backend() == "tensorflow" or keras.backend.standardize_dtype(x.dtype) != "float64":
        return ops.mean(x, axis=axis, keepdims=keepdims)
    size, n = ops.shape(x), 1
    for a in (axis,) if isinstance(axis, int) else axis:
        n = n * size[a]
    return ops.sum(x, axis=axis, keepdims=keepdims) / (n if isinstance(n, int) else ops.cast(n, x.dtype))


def amax(x: Any, axis: Any, keepdims: bool = False) -> Any:
    """Return the maximum over axes. For an empty batch, for which keras.ops.max may raise, return an empty tensor."""
    largest = ops.sum if x.shape[0] == 0 else ops.max
    return largest(x, axis=axis, keepdims=keepdims)


stack, concatenate, reshape = ops.stack, ops.concatenate, ops.reshape
multiply, zeros_like = ops.multiply, ops.zeros_like


def allow_empty_batch(layer: Callable[..., Any], x: Any, *args: Any) -> Any:
    """Return layer(x, *args), also for an empty batch, for which convolutions of Keras 3.13 and oneDNN raise an error.

    For an empty batch the layer is applied to one sample of zeros, and the output for it is dropped.
    """
    if x.shape[0] != 0:
        return layer(x, *args)
    return layer(ops.pad(x, ((0, 1), *((0, 0),) * (x.ndim - 1))), *args)[:0]
