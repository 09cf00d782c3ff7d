"""Copy functional Keras models with their weights, while a function calls each layer."""

from __future__ import annotations

import os
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

from ..adapters import is_kind, replaced_methods
from ..ops.keras import keras
from ..ops.keras_layers import parts_of

Call = Callable[..., Any]   # called with (path, copy of a layer, original layer, *inputs); returns the layer's output


def functional(model: Any) -> Any:
    """Return a functional model with the layers of a functional or sequential model. Raise ValueError for others."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(f"expected a built model, got {model.name!r}: give it an input shape first")
        if not is_kind(type(model), keras.Sequential):
            raise _own_methods(model, keras.Sequential)
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not has_graph(model):
        hint = "a subclassed model calls its layers in Python: call the block there"
        raise ValueError(f"expected a functional Keras model, got {type(model).__name__}; {hint}")
    return model


def _own_methods(model: Any, base: type[Any]) -> ValueError:
    """Return the error for a model of a subclass of `base` that overrides methods, which its copy would not have."""
    if type(model).call is not base.call:
        got = f"{type(model).__name__}, which has its own call"
        return ValueError(f"expected a model that only calls its layers, got {got}: call the block there")
    fix = f"attach to keras.Model(model.inputs, model.outputs), and create a {type(model).__name__} from the result"
    expected = "expected a model of a class that overrides no methods of Keras"
    return ValueError(f"{expected}, got {type(model).__name__}: {fix}")


def has_graph(layer: Any) -> bool:
    """Whether a layer is a functional or sequential model, whose layers can be called one by one."""
    return isinstance(layer, keras.Model) and (isinstance(layer, keras.Sequential) or hasattr(layer, "operations"))


def layers_of(model: Any) -> dict[str, Any]:
    """Return every layer of a model once, by its first path, nested models included."""
    layers: dict[str, Any] = {}
    visited: set[int] = set()

    def walk(parent: Any, prefix: str) -> None:
        """Add the layers of a model whose path is `prefix`, and those of models in it."""
        for layer in parent.layers:
            if id(layer) in visited:
                continue
            visited.add(id(layer))
            layers[f"{prefix}{layer.name}"] = layer
            if has_graph(layer):
                walk(layer, f"{prefix}{layer.name}.")

    walk(model, "")
    return layers


def copy_model(model: Any, call: Call) -> Any:
    """Return a copy of a functional model and its weights, in which `call` calls every layer."""
    copies: dict[int, tuple[Any, Any, str]] = {}   # id of a layer -> its copy, the layer, and its path

    def copy_graph(graph: Any, prefix: str) -> Any:
        """Return a copy of a model whose layers have paths that begin with `prefix`."""
        layer_ids: dict[str, int] = {}   # name of a copy in this graph -> id of the layer
        _check_compilation(graph)

        def clone(layer: Any) -> Any:
            """Return the copy of a layer, the same one for every call."""
            if id(layer) not in copies:
                path = f"{prefix}{layer.name}"
                copy = copy_graph(functional(layer), f"{path}.") if has_graph(layer) else copy_layer(layer)
                copies[id(layer)] = copy, layer, path
            copy = copies[id(layer)][0]
            layer_ids[copy.name] = id(layer)
            return copy

        def call_layer(copied_layer: Any, *args: Any, **kwargs: Any) -> Any:
            """Return the outputs of a copied layer, from the function `call`."""
            _, original, path = copies[layer_ids[copied_layer.name]]
            return call(path, copied_layer, original, *args, **kwargs)

        copied = keras.models.clone_model(graph, clone_function=clone, call_function=call_layer)
        if type(copied) is not type(graph) and not is_kind(type(graph), type(copied)):
            raise _own_methods(graph, type(copied))
        return copied

    copied = copy_graph(model, "")
    for copy, layer, _ in reversed(copies.values()):   # outer models first, as `trainable` of a model sets its layers'
        if has_graph(layer):
            copy.trainable = layer.trainable
        elif isinstance(layer, keras.layers.Layer):   # not an operation, such as x + 3
            _set_state(copy, layer)
    return copied


def _check_compilation(model: Any) -> None:
    """Raise ValueError if Keras cannot copy the loss or metrics of a model, as it compiles a copy like the model."""
    try:
        keras.saving.deserialize_keras_object(model.get_compile_config() if model.compiled else None)
    except (TypeError, ValueError) as err:
        fix = "attach to keras.Model(model.inputs, model.outputs), and compile the result"
        got = f"others that it cannot copy in {model.name!r}: {fix}"
        raise ValueError(f"expected a loss and metrics that Keras can copy, got {got}") from err


def copy_layer(layer: Any, dtype: str | None = None) -> Any:
    """Return a new layer with the config and the vocabulary of a layer.

    The vocabulary may determine the shape of the output. Raises ValueError if the new layer would compute another
    function.

    dtype: the dtype of the new layer, if it is not that of the layer.
    """
    parts = layer._flatten_layers() if isinstance(layer, keras.layers.Layer) else []
    if method_names := [name for part in parts for name in replaced_methods(part, keras.layers.Layer, "call")]:
        got = f"one whose {method_names[0]} was replaced: create a layer of a class with this method"
        raise ValueError(f"expected {layer.name!r} with the methods of its class, which copies have, got {got}")
    is_lambda = isinstance(layer, keras.layers.Lambda)   # safe, because its function is not read from a file
    config = layer.get_config()
    if dtype is not None and "dtype" in config:   # not an operation, such as x + 3
        config = config | {"dtype": dtype}
    try:
        copy = layer.__class__.from_config(config, **({"safe_mode": False} if is_lambda else {}))
    except (NotImplementedError, TypeError) as err:
        fix = "its get_config must return all arguments, and its __init__ must accept name, dtype and trainable"
        raise ValueError(f"expected layers that Keras can copy, got {layer.name!r}: {fix}") from err
    if is_lambda:   # its config has no global names of its function
        copy.function = layer.function
    if isinstance(layer, keras.layers.Layer):   # not an operation, such as x + 3
        _copy_assets(copy, layer)
    return copy


def _copy_assets(copy: Any, layer: Any) -> None:
    """Copy the data that a layer and its sublayers save to files besides weights, such as a vocabulary."""
    if hasattr(layer, "get_vocabulary") and not layer.get_vocabulary(include_special_tokens=False):
        return   # not adapted yet
    if hasattr(layer, "save_assets") and hasattr(copy, "load_assets"):
        variables: dict[str, Any] = {}
        layer.save_own_variables(variables)
        copy.load_own_variables(variables)
        with TemporaryDirectory() as folder:
            layer.save_assets(folder)
            if os.listdir(folder):   # else its config has the vocabulary
                copy.load_assets(folder)
        return
    copies, layers = parts_of(copy), parts_of(layer)
    for name in copies.keys() & layers.keys():
        _copy_assets(copies[name], layers[name])


def _set_state(copy: Any, layer: Any) -> None:
    """Copy the weights of a layer, and `trainable` of the layer and its sublayers, to the copy of the layer."""
    copy.trainable = layer.trainable
    if copy.built and len(copy.weights) != len(layer.weights):   # such as LoRA in a sublayer
        fix = "remove the added weights, or call the block in the code that creates the model"
        got = f"{layer.name!r} with {len(layer.weights)} weights, whose copy has {len(copy.weights)}: {fix}"
        raise ValueError(f"expected layers that get_config describes, got {got}")
    if copy.built:
        copy.set_weights(layer.get_weights())
    if isinstance(copy, keras.layers.Normalization):   # it computes with arrays derived from its weights
        copy.finalize_state()
    copies, layers = parts_of(copy), parts_of(layer)
    for name in copies.keys() & layers.keys():
        _set_state(copies[name], layers[name])
