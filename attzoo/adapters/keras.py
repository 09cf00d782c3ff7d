"""Reaching into a Keras block, on each of Keras's backends."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

import numpy as np

from ..contract import Array, contiguous
from ..ops.keras import described, find, keras, locate, parts_of, path_of
from . import Run, can_attend, changed, computed, is_kind, missing, replaced_methods, same_shape


def make(cls: type[Any], config: Mapping[str, Any], dtype: str) -> Any:
    block = cls(**config, dtype=dtype)
    dtypes(block)   # raises where the backend has no such numbers
    return block


def dtype(block: Any) -> str:
    return str(_built(block).variable_dtype)


def dtypes(block: Any) -> dict[str, str]:
    values = {name: _value(_built(block), name) for name in block.spec.weights}
    return {name: _stored_dtype(value, name) for name, value in values.items()}


def _stored_dtype(value: Any, name: str) -> str:
    """The dtype of a variable's numbers. Raises ValueError where it has been declared as another one."""
    declared = str(keras.backend.standardize_dtype(value.dtype))
    stored = value.value.dtype if isinstance(value, keras.Variable) else value.dtype
    if (held := str(keras.backend.standardize_dtype(stored))) != declared:
        raise ValueError(
            f"expected {name} to hold {declared}, as its block was made, got {held}: JAX has float64 only where"
            " JAX_ENABLE_X64=1 is set in the environment before it is loaded"
        )
    return declared


def storage(dtype: str) -> str:
    kind = keras.ops.convert_to_tensor(0.0, dtype=dtype).dtype   # JAX has no float64 unless told to
    return str(keras.backend.standardize_dtype(kind))


def precision(dtype: str) -> str:
    if dtype == "float64" and keras.backend.backend() == "torch":   # keras.ops.matmul there is one of float32
        return "float32"
    return storage(dtype)


def read(block: Any) -> dict[str, Array]:
    _built(block)
    return {name: _canonical(_value(block, name), block, name) for name in block.spec.weights}


def write(block: Any, arrays: Mapping[str, Array]) -> None:
    _built(block)
    for name in arrays:
        if not isinstance(_value(block, name), keras.Variable):
            raise computed(name, block, "LoRA", "write to a block without; attzoo.weights gives what it adds up to")
        if isinstance(layer := locate(block, name)[0], keras.layers.Wrapper):
            raise computed(name, block, type(layer).__name__, "write to a block without, and wrap its layer afterwards")
    for name, array in arrays.items():
        variable = find(block, name)
        variable.assign(_reversed(array, variable).reshape(variable.shape))


def check_layers(block: Any, cls: type[Any]) -> None:
    if not is_kind(type(block), cls):
        raise changed("", block, cls.__name__, f"{type(block).__name__}, which overrides what that computes")
    if not isinstance(block, keras.Model):
        _check_parts("", block, block, _reference(block, cls))
        return
    _check_methods("", block, block)
    for layer in block.layers:   # a model's graph is fixed when it is made, and its layers remember how they were
        if can_attend(layer):
            _check_parts(path_of(layer), block, layer, _reference(layer, type(layer)))
        elif (made := getattr(layer, "made", None)) is not None:
            if made != described(layer):
                raise changed(path_of(layer), block, made, described(layer))
            _check_methods(path_of(layer), block, layer)


def _check_parts(path: str, block: Any, got: Any, made: Any) -> None:
    """Raise ValueError unless a layer, and every one in it, is as another that has just been made."""
    if not is_kind(type(got), type(made)) or (path and described(got) != described(made)):
        raise changed(path, block, described(made), described(got))
    _check_methods(path, block, got)
    inner, expected = parts_of(got), parts_of(made)
    for name in {**expected, **inner}:
        inside = f"{path}.{name}" if path else name
        if name not in inner or name not in expected:
            parts = (described(each[name]) if name in each else "nothing" for each in (expected, inner))
            raise changed(inside, block, *parts)
        _check_parts(inside, block, inner[name], expected[name])


def _check_methods(path: str, block: Any, layer: Any) -> None:
    """Raise ValueError if a method that decides what a layer computes is replaced on the instance."""
    base = keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer
    if replaced := replaced_methods(layer, base, "call"):
        raise changed(path, block, described(layer), f"one whose {replaced[0]} was replaced")


def _reference(block: Any, cls: type[Any]) -> Any:
    """A block of the same arguments as it was made, built if the block is."""
    state = random.getstate()   # of which initialisers draw their seeds
    try:
        made = cls(**block.spec.config(), data_format=block.data_format, dtype=block.dtype_policy)
        return _built(made) if block.built else made
    finally:
        random.setstate(state)


def attention(block: Any, inputs: Sequence[Array]) -> Array:
    return to_array(block.attention(*(to_tensor(x, block) for x in inputs)), block)


def forward(block: Any, inputs: Sequence[Array], training: bool) -> Array:
    return to_array(block(*(to_tensor(x, block) for x in inputs), training=training), block)


def run(block: Any, inputs: Sequence[Array], cotangent: Array, training: bool) -> Run:
    _built(block)
    tensors = [to_tensor(x, block) for x in inputs]
    y, input_gradients, weight_gradients = _gradients(block, tensors, to_tensor(cotangent, block), training)
    by_id = {id(variable): g for variable, g in zip(block.trainable_weights, weight_gradients, strict=True)}
    names = [name for name, w in block.spec.weights.items() if w.trainable]
    return Run(
        to_array(y, block),
        tuple(to_array(g, block) for g in input_gradients),
        {name: _canonical(by_id[id(find(block, name))], block, name) for name in names},
    )


def train(block: Any, inputs: Sequence[Array], cotangent: Array, steps: int, rate: float) -> None:
    _built(block)
    optimizer = keras.optimizers.SGD(rate)
    for _ in range(steps):
        tensors = [to_tensor(x, block) for x in inputs]
        gradients = _gradients(block, tensors, to_tensor(cotangent, block), training=True)[2]
        optimizer.apply(gradients, block.trainable_weights)


def place(model: Any) -> Any:
    return model   # Keras has put it there


def blocks(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(path: str, layer: Any) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if can_attend(layer):
            found[_free(path, found)] = layer
        for part in layer._flatten_layers(include_self=False, recursive=False):   # Keras tells them in no public way
            walk(f"{path}.{path_of(part)}" if path else path_of(part), part)

    walk("", model)
    return found


def _free(path: str, taken: Mapping[str, Any]) -> str:
    """`path`, or with a number where another layer has that name, as Keras numbers layers."""
    numbered = (f"{path}_{i}" if i else path for i in count())
    return next(name for name in numbered if name not in taken)


def coefficients(tensor: Any, block: Any) -> Array | None:
    if _traced(tensor):
        return None
    array = to_array(tensor, block)
    return array if array.dtype == np.float64 else array.astype(np.float32)


def eager() -> AbstractContextManager[Any]:
    return nullcontext()   # no switch of Keras reaches what it has compiled already


def to_array(tensor: Any, block: Any) -> Array:
    """A C-contiguous NumPy copy, channels first; bfloat16, which NumPy lacks, as float32."""
    array = _numpy(tensor)
    return array if block.data_format == "channels_first" else contiguous(np.moveaxis(array, -1, 1))


def to_tensor(array: Array, block: Any) -> Any:
    """A tensor in the block's layout and compute dtype."""
    array = array if block.data_format == "channels_first" else np.moveaxis(array, 1, -1)
    return keras.ops.convert_to_tensor(np.ascontiguousarray(array), dtype=block.compute_dtype)


def _gradients(block: Any, inputs: list[Any], cotangent: Any, training: bool) -> tuple[Any, Any, Any]:
    """Output, and the gradients of sum(output * cotangent) for the inputs and the trainable weights."""
    weights = [variable.value for variable in block.trainable_weights]
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = block(*inputs, training=training)
        inner, outer = tape.gradient(y, [inputs, weights], output_gradients=cotangent)
        return y, inner, [tf.convert_to_tensor(g) for g in outer]
    if backend == "torch":
        import torch

        inputs = [x.requires_grad_() for x in inputs]
        y = block(*inputs, training=training)
        found = torch.autograd.grad(y, [*inputs, *weights], cotangent)
        return y, found[: len(inputs)], found[len(inputs) :]
    import jax

    def both(weights: Any, inputs: Any, others: Any, cotangent: Any) -> Any:
        def call(weights: Any, inputs: Any) -> Any:
            return block.stateless_call(weights, others, *inputs, training=training)

        y, pull, others = jax.vjp(call, weights, inputs, has_aux=True)
        return y, pull(cotangent), others

    others = [variable.value for variable in block.non_trainable_variables]
    y, (outer, inner), others = jax.jit(both)(weights, inputs, others, cotangent)   # op by op costs ten times as much
    for variable, value in zip(block.non_trainable_variables, others, strict=True):
        variable.assign(value)
    return y, inner, outer


def _traced(tensor: Any) -> bool:
    """Whether a tensor stands for numbers that are not there yet."""
    if keras.utils.is_keras_tensor(tensor):
        return True
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.is_symbolic_tensor(tensor))
    if backend == "torch":
        import torch

        return bool(torch.compiler.is_compiling() or tensor.is_meta)
    import jax

    return isinstance(tensor, jax.core.Tracer)


def _built(block: Any) -> Any:
    if not block.built:
        block.build(*((None, *shape) for shape in shapes(block)))
    return block


def shapes(block: Any) -> list[tuple[int | None, ...]]:
    """The shape of a sample of each input, its spatial sizes not known."""
    space = (None,) * getattr(block.spec, "spatial_dims", 2)
    first = block.data_format == "channels_first"
    return [(c, *space) if first else (*space, c) for c in block.spec.inputs]


def _numpy(tensor: Any) -> Array:
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    return contiguous(keras.ops.convert_to_numpy(tensor))


def _value(block: Any, name: str) -> Any:
    """The variable of canonical `name`, or what its layer computes in its place."""
    try:
        layer, leaf = locate(block, name)
        value = getattr(layer, leaf)
    except (AttributeError, ValueError) as err:
        raise missing(name, block, err) from err
    if mode := getattr(layer, "quantization_mode", None):
        raise missing(name, block, f"codes that Keras quantized ({mode}): take the weights before quantize()")
    shape = block.spec.weights[name].shape
    if leaf == "kernel":
        shape = (*shape[2:], shape[1], shape[0])
    if value is None or not same_shape(value.shape, shape):
        raise missing(name, block, None if value is None else f"shape {tuple(value.shape)} for {shape}")
    return value


def _canonical(tensor: Any, block: Any, name: str) -> Array:
    """A variable of Keras, or its gradient, in canonical layout: a kernel is (*k, I, O) there and (O, I, *k) here."""
    array, shape = _numpy(tensor), block.spec.weights[name].shape
    if locate(block, name)[1] == "kernel":
        array = array.reshape(*shape[2:], shape[1], shape[0])
        array = array.transpose(-1, -2, *range(array.ndim - 2))
    return contiguous(array.reshape(shape))


def _reversed(array: Array, variable: Any) -> Array:
    """The way back."""
    return array.transpose(*range(2, array.ndim), 1, 0) if variable.name == "kernel" else array
