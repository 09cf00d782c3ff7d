"""Blocks in functional models of Keras: a new model is made, with copies of the layers and of their weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from math import prod
from tempfile import TemporaryDirectory
from typing import Any

from .. import registry
from ..adapters import can_attend
from ..blocks.keras import AttachedBlock
from ..ops.keras import keras, parts_of
from .create import check_one_input, create
from .keras_same import is_product, same_block
from .match import select
from .report import Place, Report

Call = Callable[..., Any]   # called with (path, copy of a layer, original layer, *inputs); returns the layer's output


def attach(model: Any, name: str, after: Any, start: str, example: Any, options: Mapping[str, Any]) -> Report:
    """Do what `attzoo.attach` documents."""
    source = _functional(model)
    _check_one_input(name)
    layers = _layers(source)
    paths = _residual_ends(source) if after == "residual" else set(select(layers, after, "after", source.name))
    if there := next((path for path in sorted(paths) if f"{path}_attention" in layers), None):
        raise ValueError(f"expected no layer {there + '_attention'!r}, got a model that has it: detach it first")
    made: dict[str, tuple[Any, Place]] = {}

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        y = layer(*args, **kwargs)
        if path not in paths:
            return y
        if path in made:
            raise ValueError(f"expected {path!r} to be called once, got a layer that the model calls several times")
        block = _create(path, name, original, y, _with_format(options, original, y, layers))
        attached = AttachedBlock(block, start, name=f"{layer.name}_attention", dtype=_policy(original, y))
        attended = attached(y)
        made[path] = attached, _place(f"{path}_attention", attached, y)
        return attended

    copied = _copy(source, call)
    _check_called(paths, made)
    for attached, _ in made.values():
        attached.trainable = True   # in a nested model that is frozen too
    return Report(copied, tuple(place for _, place in made.values()))


def detach(model: Any) -> Report:
    """Do what `attzoo.detach` documents."""
    source = _functional(model)
    places: list[Place] = []

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(layer, AttachedBlock):
            return layer(*args, **kwargs)
        places.append(_place(path, original, args[0]))
        return args[0]

    made = _copy(source, call)
    if not places:
        raise ValueError(f"expected a model with blocks of attzoo.attach, got {model.name!r} without any")
    return Report(made, tuple(places))


def swap(model: Any, name: str, where: Any, example: Any, options: Mapping[str, Any]) -> Report:
    """Do what `attzoo.swap` documents."""
    source = _functional(model)
    _check_one_input(name)
    layers = select(_layers(source), where, "where", source.name)
    for path, layer in layers.items():
        if not can_attend(layer) and not is_product(layer):
            hint = "in Keras, swap exchanges blocks of attzoo, and the Multiply at the end of other attention"
            raise ValueError(f"expected a block of attzoo at {path!r}, got {type(layer).__name__}: {hint}")
    every, made = _layers(source), dict[str, tuple[Any, Place]]()

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        if path not in layers:
            return layer(*args, **kwargs)
        x = args[0] if can_attend(original) else args[0][0]
        if path not in made:
            given = {"name": original.name, **_with_format(options, original, x, every)}
            made[path] = _replacement(path, name, original, x, given)
        return made[path][0](x)

    copied = _copy(source, call)
    _check_called(layers, made)
    return Report(copied, tuple(place for _, place in made.values()))


def _replacement(path: str, name: str, layer: Any, x: Any, options: Mapping[str, Any]) -> tuple[Any, Place]:
    """Return the block that replaces a layer, with its weights where it computes the same, and the report's line."""

    def make(arguments: Mapping[str, Any]) -> Any:
        return _create(path, name, layer, x, arguments)

    block = None if can_attend(layer) else same_block(layer, name, options, make)
    if block is not None:
        return block, _place(path, block, x, "Keras")
    block = make(options)
    return block, _place(path, block, x)


def _check_one_input(name: str) -> None:
    """Raise ValueError for a block with a gating signal."""
    hint = 'use attzoo\'s UNet with skip="attention_gate", or call the block where both tensors are at hand'
    check_one_input(name, "layer", hint)


def _check_called(paths: Collection[str], made: Collection[str]) -> None:
    """Raise ValueError where a chosen layer was not called, which an input is not."""
    if missing := sorted(set(paths) - set(made)):
        raise ValueError(f"expected layers that the model calls, got {missing[0]!r}, which it does not: choose another")


def _functional(model: Any) -> Any:
    """Return a functional model with the layers of a functional or sequential one. Raise ValueError for others."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(f"expected a built model, got {model.name!r}: give it an input shape first")
        if type(model).call is not keras.Sequential.call:
            got = f"{type(model).__name__}, which has its own call"
            raise ValueError(f"expected a model that only calls its layers, got {got}: call the block there")
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not _has_graph(model):
        hint = "a subclassed model calls its layers in Python: call the block there"
        raise ValueError(f"expected a functional Keras model, got {type(model).__name__}; {hint}")
    return model


def _has_graph(layer: Any) -> bool:
    """Whether a layer is a functional or sequential model, whose layers can be called one by one."""
    return isinstance(layer, keras.Model) and (isinstance(layer, keras.Sequential) or hasattr(layer, "operations"))


def _layers(model: Any) -> dict[str, Any]:
    """Return every layer of a model once, by its first path, nested models included."""
    layers: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(inside: Any, prefix: str) -> None:
        for layer in inside.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            layers[f"{prefix}{layer.name}"] = layer
            if _has_graph(layer):
                walk(layer, f"{prefix}{layer.name}.")

    walk(model, "")
    return layers


def _copy(model: Any, call: Call) -> Any:
    """Return a copy of a functional model and its weights, in which `call` calls every layer."""
    copies: dict[int, tuple[Any, Any, str]] = {}   # id of a layer -> its copy, the layer, and its path

    def copy_graph(graph: Any, prefix: str) -> Any:
        present: dict[str, int] = {}   # name of a copy in this graph -> id of the layer

        def clone(layer: Any) -> Any:
            if id(layer) not in copies:
                path = f"{prefix}{layer.name}"
                copy = copy_graph(_functional(layer), f"{path}.") if _has_graph(layer) else _clone(layer)
                copies[id(layer)] = copy, layer, path
            copy = copies[id(layer)][0]
            present[copy.name] = id(layer)
            return copy

        def call_layer(layer: Any, *args: Any, **kwargs: Any) -> Any:
            _, original, path = copies[present[layer.name]]
            return call(path, layer, original, *args, **kwargs)

        made = keras.models.clone_model(graph, clone_function=clone, call_function=call_layer)
        if type(made).call is not type(graph).call:
            got = f"{type(graph).__name__}, which has its own call"
            raise ValueError(f"expected a model that only calls its layers, got {got}: call the block there")
        return made

    made = copy_graph(model, "")
    for copy, layer, _ in reversed(copies.values()):   # outer models first, as `trainable` of a model sets its layers'
        if _has_graph(layer):
            copy.trainable = layer.trainable
        elif isinstance(layer, keras.layers.Layer):   # not an operation, such as x + 3
            _set_state(copy, layer)
    return made


def _clone(layer: Any) -> Any:
    """Return a new layer of the same arguments and vocabulary, on which the shape of an output depends."""
    is_lambda = isinstance(layer, keras.layers.Lambda)   # its function is in this process already, so that it may run
    copy = layer.__class__.from_config(layer.get_config(), **({"safe_mode": False} if is_lambda else {}))
    if isinstance(layer, keras.layers.Layer):   # not an operation, such as x + 3
        _copy_assets(copy, layer)
    return copy


def _copy_assets(copy: Any, layer: Any) -> None:
    """Copy what a layer and its sublayers store in files beside their weights, such as a vocabulary, as Keras saves."""
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
    """Give the copy of a layer its weights, and to it and its sublayers whether they are trained."""
    copy.trainable = layer.trainable
    if copy.built:
        copy.set_weights(layer.get_weights())
    if isinstance(copy, keras.layers.Normalization):   # which computes with other arrays than its weights
        copy.finalize_state()
    copies, layers = parts_of(copy), parts_of(layer)
    for name in copies.keys() & layers.keys():
        _set_state(copies[name], layers[name])


def _residual_ends(model: Any) -> set[str]:
    """Return the names of the layers that end a residual branch.

    Of the two inputs of an Add, the residual branch is the one with more layers since both parted.
    """
    made_by: dict[int, tuple[str, frozenset[str]]] = {}   # tensor -> its layer, and all layers that it depends on
    alive: list[Any] = []
    ends: set[str] = set()
    nothing: tuple[str, frozenset[str]] = "", frozenset()   # of an input, which no layer makes

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = [made_by.get(id(x), nothing) for x in _tensors(args, kwargs)]
        if type(layer).__name__ == "Add" and len(inputs) == 2:   # a layer, or the operation of x + y
            (a, before_a), (b, before_b) = inputs
            ends.add(a if len(before_a - before_b) > len(before_b - before_a) else b)
        y = layer(*args, **kwargs)
        before = frozenset({path}).union(*(layers for _, layers in inputs))
        for tensor in _tensors(y):
            made_by[id(tensor)] = path, before
            alive.append(tensor)   # so that no id is used again
        return y

    _copy(model, call)
    if not (ends := ends - {""}):
        raise ValueError(f"after='residual' expects Add layers of two branches, got {model.name!r} without any")
    return ends


def _tensors(*values: Any) -> Iterator[Any]:
    return (x for x in keras.tree.flatten(values) if keras.utils.is_keras_tensor(x))


def _create(path: str, name: str, layer: Any, x: Any, options: Mapping[str, Any]) -> Any:
    """Return a new block for the output of a layer."""
    if not keras.utils.is_keras_tensor(x) or not 3 <= len(x.shape) <= 5:
        got = getattr(x, "shape", type(x).__name__)
        raise ValueError(f"expected a tensor with 1 to 3 spatial axes from {path!r}, got {got}")
    channels = x.shape[-1 if options["data_format"] == "channels_last" else 1]
    if channels is None:
        raise ValueError(f"expected a known number of channels from {path!r}, got shape {x.shape}")
    return create(path, name, "keras", channels, len(x.shape) - 2, {"dtype": _policy(layer, x), **options})


def _policy(layer: Any, x: Any) -> Any:
    """Return the dtype policy of a layer; for an operation, the global one where that computes in the dtype of x."""
    if isinstance(layer, keras.layers.Layer):
        return layer.dtype_policy
    policy = keras.config.dtype_policy()
    return policy if policy.compute_dtype == x.dtype else x.dtype


def _with_format(options: Mapping[str, Any], layer: Any, x: Any, layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the data format of a layer: what it states, or else all other layers, or keras.config."""
    if options.get("data_format") is not None:
        return dict(options)
    stated = _data_format(layer)
    others = {known for each in layers.values() if (known := _data_format(each)) is not None}
    if stated is None and len(others) > 1:
        raise ValueError(f"expected layers of one data format around {layer.name!r}, got both: give data_format=")
    return dict(options) | {"data_format": stated or next(iter(others), keras.config.image_data_format())}


def _data_format(layer: Any) -> str | None:
    """Return where a layer states that it has its channels, or None."""
    if isinstance(layer, keras.layers.Flatten):   # whose setting does not tell its input's
        return None
    if isinstance(layer, keras.layers.BatchNormalization):
        rank, axis = layer.input_spec.ndim, layer.axis if isinstance(layer.axis, int) else layer.axis[0]
        known = "channels_last" if axis % rank == rank - 1 else "channels_first"
        return known if rank > 2 else None
    return getattr(layer, "data_format", None)


def _place(path: str, layer: Any, x: Any, weights: str = "initial") -> Place:
    """Return what the report says of a block that attends to x."""
    block = layer.block if isinstance(layer, AttachedBlock) else layer
    shape = [1 if i == 0 else size for i, size in enumerate(x.shape)]
    if block.channels_last:
        shape = [shape[0], shape[-1], *shape[1:-1]]
    macs = None if None in shape else block.spec.macs(tuple(shape))
    parameters = sum(prod(weight.shape) for weight in layer.trainable_weights)
    return Place(path, registry.name_of(block.spec), block.spec.channels, parameters, macs, weights)
