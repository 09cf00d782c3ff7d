"""Adapter for Keras blocks on every backend of Keras. See `Adapter` for the functions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

import numpy as np

from ..blocks.keras import AttachedBlock
from ..contract import Array, Coefficients, contiguous, map_coefficients
from ..ops.keras import find, keras, locate, path_of
from ..ops.keras_layers import changed_settings, described, parts_of
from . import Run, can_attend, changed_layer, computed_array, has_spec, is_kind, replaced_methods
from .keras_arrays import built, canonical, numpy_copy, stored_dtype, to_keras_layout, value_of
from .keras_arrays import shapes as shapes


def make(cls: type[Any], config: Mapping[str, Any], dtype: str) -> Any:
    """Return a built block of class `cls` whose weights have `dtype`. Raise ValueError if JAX lacks the dtype."""
    block = cls(**config, dtype=dtype)
    dtypes(block)   # raises if the backend does not support the dtype
    return block


def dtype(block: Any) -> str:
    """Return the widest dtype of the weights."""
    return str(built(block).variable_dtype)


def dtypes(block: Any) -> dict[str, str]:
    """Return the dtype of every array by canonical name.

    Raise ValueError if an array is missing, or its values have another dtype than it declares.
    """
    values = {name: value_of(built(block), name) for name in block.spec.weights}
    return {name: stored_dtype(value, name) for name, value in values.items()}


def storage(dtype: str) -> str:
    """Return the dtype in which the backend stores arrays of `dtype`."""
    kind = keras.ops.convert_to_tensor(0.0, dtype=dtype).dtype   # JAX may replace float64 by float32
    return str(keras.backend.standardize_dtype(kind))


def precision(dtype: str) -> str:
    """Return the dtype in which the backend computes with arrays of `dtype`."""
    if dtype == "float64" and keras.backend.backend() == "torch":   # keras.ops.matmul computes in float32 there
        return "float32"
    return storage(dtype)


def read(block: Any) -> dict[str, Array]:
    """Return copies of the arrays by canonical name."""
    built(block)
    return {name: canonical(value_of(block, name), block, name) for name in block.spec.weights}


def write(block: Any, arrays: Mapping[str, Array]) -> None:
    """Write checked arrays, by canonical name, to a block."""
    built(block)
    for name in arrays:
        if not isinstance(value_of(block, name), keras.Variable):
            remedy = "write to a block without LoRA; attzoo.weights returns the merged array"
            raise computed_array(name, block, "LoRA", remedy)
        if isinstance(layer := locate(block, name)[0], keras.layers.Wrapper):
            remedy = "write to a block without this wrapper, and wrap the layer afterwards"
            raise computed_array(name, block, type(layer).__name__, remedy)
    for name, array in arrays.items():
        variable = find(block, name)
        variable.assign(to_keras_layout(array, variable).reshape(variable.shape))


def check_layers(block: Any, cls: type[Any]) -> None:
    """Raise ValueError unless a block has the layers that its class creates."""
    if not is_kind(type(block), cls):
        raise changed_layer("", block, cls.__name__, f"{type(block).__name__}, which overrides its computation")
    if not isinstance(block, keras.Model):
        _check_parts("", block, block, _reference(block, cls))
        return
    _check_methods("", block, block)
    for layer in block.layers:   # the graph of a model is fixed, and `made` describes a layer at its creation
        if can_attend(layer):
            _check_parts(path_of(layer), block, layer, _reference(layer, type(layer)))
        elif getattr(layer, "made", None) is not None:
            if changed_setting := changed_settings(layer):
                raise changed_layer(path_of(layer), block, *changed_setting)
            _check_methods(path_of(layer), block, layer)


def _check_parts(path: str, block: Any, got: Any, created: Any) -> None:
    """Raise ValueError unless a layer `got` and its sublayers have the classes and settings of a new layer `created`.

    path: path of the layer in the block; "" is the block itself.
    """
    if not is_kind(type(got), type(created)) or (path and described(got) != described(created)):
        raise changed_layer(path, block, described(created), described(got))
    _check_methods(path, block, got)
    inner, expected = parts_of(got), parts_of(created)
    for name in {**expected, **inner}:
        inner_path = f"{path}.{name}" if path else name
        if name not in inner or name not in expected:
            texts = (described(parts[name]) if name in parts else "nothing" for parts in (expected, inner))
            raise changed_layer(inner_path, block, *texts)
        _check_parts(inner_path, block, inner[name], expected[name])


def _check_methods(path: str, block: Any, layer: Any) -> None:
    """Raise ValueError if a method that affects what a layer computes is replaced on the instance.

    path: path of the layer in the block.
    """
    base = keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer
    if replaced := replaced_methods(layer, base, "call"):
        raise changed_layer(path, block, described(layer), f"one whose {replaced[0]} was replaced")


def _reference(block: Any, cls: type[Any]) -> Any:
    """Return a new block of class `cls` with the arguments of `block`, built if `block` is built."""
    state = random.getstate()   # initializers draw their seeds from it
    try:
        reference = cls(**block.spec.config(), data_format=block.data_format, dtype=block.dtype_policy)
        return built(reference) if block.built else reference
    finally:
        random.setstate(state)


def attention(block: Any, inputs: Sequence[Array]) -> Coefficients:
    """Return the coefficients for these inputs, channels first."""
    coefficients = block.attention(*(to_tensor(x, block) for x in inputs))
    return map_coefficients(lambda tensor: to_array(tensor, block), coefficients)


def forward(block: Any, inputs: Sequence[Array], training: bool) -> Array:
    """Return the output (N, C, *S) for these inputs, channels first."""
    return to_array(block(*(to_tensor(x, block) for x in inputs), training=training), block)


def run(block: Any, inputs: Sequence[Array], cotangent: Array, training: bool) -> Run:
    """Return the output of a forward pass, and the gradients of sum(output * cotangent)."""
    built(block)
    tensors = [to_tensor(x, block) for x in inputs]
    y, input_gradients, weight_gradients = _gradients(block, tensors, to_tensor(cotangent, block), training)
    by_id = {id(variable): g for variable, g in zip(block.trainable_weights, weight_gradients, strict=True)}
    names = [name for name, w in block.spec.weights.items() if w.trainable]
    return Run(
        to_array(y, block),
        tuple(to_array(gradient, block) for gradient in input_gradients),
        {name: canonical(by_id[id(find(block, name))], block, name) for name in names},
    )


def train(block: Any, inputs: Sequence[Array], cotangent: Array, steps: int, rate: float) -> None:
    """Train a block in place by `steps` steps of SGD with learning rate `rate` on sum(output * cotangent)."""
    built(block)
    optimizer = keras.optimizers.SGD(rate)
    for _ in range(steps):
        tensors = [to_tensor(x, block) for x in inputs]
        gradients = _gradients(block, tensors, to_tensor(cotangent, block), training=True)[2]
        optimizer.apply(gradients, block.trainable_weights)


def place(model: Any) -> Any:
    """Return the model. Keras has placed its variables already."""
    return model


def blocks(model: Any) -> dict[str, Any]:
    """Return every block of a model by its path."""
    return _layers_by_path(model, can_attend)


def parts(model: Any) -> dict[str, Any]:
    """Return the outermost blocks, attached blocks and networks of a model by path."""
    return _layers_by_path(model, lambda layer: isinstance(layer, AttachedBlock) or has_spec(layer), outermost=True)


def gamma(holder: Any) -> tuple[Array, str]:
    """Return the weight `gamma` of `holder`, an AttachedBlock, and the name of its dtype.

    Raise ValueError if its values have another dtype than it declares, as float64 on JAX without JAX_ENABLE_X64.
    """
    return numpy_copy(holder.gamma), stored_dtype(holder.gamma, "gamma")


def set_gamma(holder: Any, array: Array) -> None:
    """Write an array of shape (1,) to the weight `gamma` of `holder`, an AttachedBlock."""
    holder.gamma.assign(array)


def _layers_by_path(model: Any, is_selected: Callable[[Any], bool], outermost: bool = False) -> dict[str, Any]:
    """Return the selected layers of a model by path, each once; with `outermost`, no layer inside a selected layer."""
    layers: dict[str, Any] = {}
    visited: set[int] = set()

    def walk(path: str, layer: Any) -> None:
        """Add the selected layers among a layer and its sublayers."""
        if id(layer) in visited:
            return
        visited.add(id(layer))
        if is_selected(layer):
            layers[_unused_path(path, layers)] = layer
            if outermost:
                return
        for part in layer._flatten_layers(include_self=False, recursive=False):   # Keras has no public method for this
            walk(f"{path}.{path_of(part)}" if path else path_of(part), part)

    walk("", model)
    return layers


def _unused_path(path: str, used: Mapping[str, Any]) -> str:
    """Return `path`, with a number appended as Keras does for names of layers if `used` has it already."""
    numbered = (f"{path}_{i}" if i else path for i in count())
    return next(name for name in numbered if name not in used)


def coefficients(tensor: Any, block: Any) -> Array | None:
    """Return coefficients as a float32 or float64 array, channels first; None for a traced tensor."""
    if _is_traced(tensor):
        return None
    array = to_array(tensor, block)
    return array if array.dtype == np.float64 else array.astype(np.float32)


def eager() -> AbstractContextManager[Any]:
    """Do nothing, because Keras cannot run compiled functions eagerly."""
    return nullcontext()


def to_array(tensor: Any, block: Any) -> Array:
    """Return a C-contiguous NumPy copy, channels first; bfloat16, which NumPy does not have, as float32."""
    array = numpy_copy(tensor)
    return array if block.data_format == "channels_first" else contiguous(np.moveaxis(array, -1, 1))


def to_tensor(array: Array, block: Any) -> Any:
    """Return a channels-first array as a tensor in the block's layout and compute dtype."""
    array = array if block.data_format == "channels_first" else np.moveaxis(array, 1, -1)
    return keras.ops.convert_to_tensor(np.ascontiguousarray(array), dtype=block.compute_dtype)


def _gradients(block: Any, inputs: list[Any], cotangent: Any, training: bool) -> tuple[Any, Any, Any]:
    """Return the output, and the gradients of sum(output * cotangent) for inputs and trainable weights."""
    weights = [variable.value for variable in block.trainable_weights]
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = block(*inputs, training=training)
        input_gradients, weight_gradients = tape.gradient(y, [inputs, weights], output_gradients=cotangent)
        return y, input_gradients, [tf.convert_to_tensor(gradient) for gradient in weight_gradients]
    if backend == "torch":
        import torch

        inputs = [x.requires_grad_() for x in inputs]
        y = block(*inputs, training=training)
        gradients = torch.autograd.grad(y, [*inputs, *weights], cotangent)
        return y, gradients[: len(inputs)], gradients[len(inputs) :]
    return _jax_gradients(block, inputs, cotangent, training, weights)


def _jax_gradients(block: Any, inputs: list[Any], cotangent: Any, training: bool, weights: list[Any]) -> Any:
    """Return the result of `_gradients` on JAX: output, input gradients and weight gradients.

    weights: values of the block's trainable weights. The values of other variables are updated.
    """
    import jax

    def forward_and_backward(weights: Any, inputs: Any, state: Any, cotangent: Any) -> Any:
        """Return the output, the gradients for weights and inputs, and the new `state`. Compiled by jax.jit."""

        def call(weights: Any, inputs: Any) -> Any:
            """Return output and new state as a function of what is differentiated."""
            return block.stateless_call(weights, state, *inputs, training=training)

        y, backward, state = jax.vjp(call, weights, inputs, has_aux=True)
        return y, backward(cotangent), state

    state = [variable.value for variable in block.non_trainable_variables]
    compiled = jax.jit(forward_and_backward)   # ten times as fast as operation by operation
    y, (weight_gradients, input_gradients), state = compiled(weights, inputs, state, cotangent)
    for variable, value in zip(block.non_trainable_variables, state, strict=True):
        variable.assign(value)
    return y, input_gradients, weight_gradients


def _is_traced(tensor: Any) -> bool:
    """Whether a tensor is symbolic and has no values."""
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
