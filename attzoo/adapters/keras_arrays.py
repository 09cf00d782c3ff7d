"""Find the arrays of Keras blocks, and convert them between Keras's and the canonical layout."""

from __future__ import annotations

from typing import Any

from ..contract import Array, contiguous
from ..ops.keras import keras, locate
from . import missing_array, same_shape


def built(block: Any) -> Any:
    """Build a block if it is not built, and return it."""
    if not block.built:
        block.build(*((None, *shape) for shape in shapes(block)))
    return block


def shapes(block: Any) -> list[tuple[int | None, ...]]:
    """Return the shape of one sample of each input in the block's data format, with None for spatial sizes."""
    unknown_sizes = (None,) * getattr(block.spec, "spatial_dims", 2)
    is_channels_first = block.data_format == "channels_first"
    return [(c, *unknown_sizes) if is_channels_first else (*unknown_sizes, c) for c in block.spec.inputs]


def value_of(block: Any, name: str) -> Any:
    """Return the variable of canonical `name`, or the tensor that its layer computes instead.

    Raises ValueError if there is none, if it is quantized, or if it has another shape.
    """
    try:
        layer, attribute = locate(block, name)
        value = getattr(layer, attribute)
    except (AttributeError, ValueError) as err:
        raise missing_array(name, block, err) from err
    if mode := getattr(layer, "quantization_mode", None):
        raise missing_array(name, block, f"values quantized by Keras ({mode})", "read the weights before quantize()")
    shape = block.spec.weights[name].shape
    if attribute == "kernel":
        shape = (*shape[2:], shape[1], shape[0])
    if value is None or not same_shape(value.shape, shape):
        raise missing_array(name, block, None if value is None else f"shape {tuple(value.shape)}, not {shape}")
    return value


def stored_dtype(value: Any, name: str) -> str:
    """Return the dtype of a variable's values. Raise ValueError if the variable declares another dtype.

    name: canonical name of the variable, for the error.
    """
    declared_dtype = str(keras.backend.standardize_dtype(value.dtype))
    value_dtype = value.value.dtype if isinstance(value, keras.Variable) else value.dtype
    if (got := str(keras.backend.standardize_dtype(value_dtype))) != declared_dtype:
        raise ValueError(
            f"expected {name} in {declared_dtype}, the dtype of its block, got {got}: JAX has float64 only if"
            " JAX_ENABLE_X64=1 is set in the environment before JAX is imported"
        )
    return declared_dtype


def numpy_copy(tensor: Any) -> Array:
    """Return a C-contiguous NumPy copy in the tensor's layout; bfloat16 as float32."""
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    return contiguous(keras.ops.convert_to_numpy(tensor))


def canonical(tensor: Any, block: Any, name: str) -> Array:
    """Return a variable or its gradient as an array in canonical layout: kernels (*k, I, O) become (O, I, *k)."""
    array, shape = numpy_copy(tensor), block.spec.weights[name].shape
    if locate(block, name)[1] == "kernel":
        array = array.reshape(*shape[2:], shape[1], shape[0])
        array = array.transpose(-1, -2, *range(array.ndim - 2))
    return contiguous(array.reshape(shape))


def to_keras_layout(array: Array, variable: Any) -> Array:
    """Return an array in Keras's layout: kernels (O, I, *k) become (*k, I, O)."""
    return array.transpose(*range(2, array.ndim), 1, 0) if variable.name == "kernel" else array
