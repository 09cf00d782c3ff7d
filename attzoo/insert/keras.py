"""Blocks in functional models of Keras: a new model is made, with copies of the layers and of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from math import prod
from typing import Any

from .. import registry
from ..adapters import can_attend
from ..card import info
from ..contract import choice
from ..ops import keras as ops
from ..ops.keras import keras
from . import STARTS
from .match import select
from .report import Place, Report

Call = Callable[..., Any]   # called with (path, copy of a layer, original layer, *inputs); returns the layer's output


@ops.register
class AttachedBlock(keras.layers.Layer):
    """A block that `attach` has put into a model: (N, *S, C) -> (N, *S, C).

    Args:
        block: the block.
        start: "default" computes block(x); "identity" x + gamma * (block(x) - x), where the weight gamma, of shape
            (1,), is 0 at first.

    """

    def __init__(self, block: Any, start: str = "default", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block = block
        self.start = choice("start", start, STARTS)

    def build(self, shape: Any) -> None:
        if not self.block.built:
            self.block.build(shape)
        if self.start == "identity":
            self.gamma = self.add_weight(name="gamma", shape=(1,), initializer="zeros")

    def call(self, x: Any, training: bool | None = None) -> Any:
        y = self.block(x, training=training)
        return y if self.start == "default" else x + self.gamma * (y - x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def get_config(self) -> dict[str, Any]:
        block = keras.saving.serialize_keras_object(self.block)
        return super().get_config() | {"block": block, "start": self.start}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config | {"block": keras.saving.deserialize_keras_object(config["block"])})


def attach(model: Any, name: str, after: Any, start: str, example: Any, options: Mapping[str, Any]) -> Report:
    """Do what `attzoo.attach` documents."""
    source = _functional(model)
    if len(info(name).inputs) > 1:
        hint = 'use attzoo\'s UNet with skip="attention_gate", or call the block where both tensors are at hand'
        raise ValueError(f"{name} takes {' and '.join(info(name).inputs)}, and a layer returns one tensor: {hint}")
    paths = _residual_ends(source) if after == "residual" else set(select(_layers(source), after, "after", source.name))
    places: list[Place] = []

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        y = layer(*args, **kwargs)
        if path not in paths:
            return y
        if any(place.path == f"{path}_attention" for place in places):
            raise ValueError(f"expected {path!r} to be called once, got a layer that the model calls several times")
        block = _create(path, name, original, y, options)
        attached = AttachedBlock(block, start, name=f"{layer.name}_attention", dtype=original.dtype_policy)
        attended = attached(y)
        places.append(_place(f"{path}_attention", attached, y))
        return attended

    return Report(_copy(source, call), tuple(places))


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
    layers = select(_layers(source), where, "where", source.name)
    for path, layer in layers.items():
        if not can_attend(layer):
            hint = "in Keras, swap exchanges only blocks of attzoo; attach puts one after another layer"
            raise ValueError(f"expected a block of attzoo at {path!r}, got {type(layer).__name__}: {hint}")
    places: list[Place] = []

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        if path not in layers:
            return layer(*args, **kwargs)
        block = _create(path, name, original, args[0], {"name": original.name, **options})
        y = block(args[0])
        places.append(_place(path, block, args[0]))
        return y

    return Report(_copy(source, call), tuple(places))


def _functional(model: Any) -> Any:
    """Return a functional model with the layers of a functional or sequential one. Raise ValueError for others."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(f"expected a built model, got {model.name!r}: give it an input shape first")
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not _has_graph(model):
        hint = "a subclassed model calls its layers in Python: call the block there"
        raise ValueError(f"expected a functional Keras model, got {type(model).__name__}; {hint}")
    return model


def _has_graph(layer: Any) -> bool:
    """Whether a layer is a functional or sequential model, whose layers can be called one by one."""
    return isinstance(layer, keras.Model) and (isinstance(layer, keras.Sequential) or hasattr(layer, "operations"))


def _layers(model: Any, prefix: str = "") -> dict[str, Any]:
    """Return every layer of a model by its path, nested models included."""
    layers: dict[str, Any] = {}
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        layers[path] = layer
        if _has_graph(layer):
            layers |= _layers(layer, f"{path}.")
    return layers


def _copy(model: Any, call: Call, prefix: str = "") -> Any:
    """Return a copy of a functional model and its weights, in which `call` calls every layer."""
    copies: dict[str, tuple[Any, Any]] = {}

    def clone(layer: Any) -> Any:
        if _has_graph(layer):
            copy = _copy(_functional(layer), call, f"{prefix}{layer.name}.")
        else:
            copy = layer.__class__.from_config(layer.get_config())
        copies[copy.name] = copy, layer
        return copy

    def call_layer(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return call(f"{prefix}{layer.name}", layer, copies[layer.name][1], *args, **kwargs)

    made = keras.models.clone_model(model, clone_function=clone, call_function=call_layer)
    for copy, layer in copies.values():
        if not isinstance(layer, keras.layers.Layer):   # an operation, such as x + 3
            continue
        if not _has_graph(layer) and copy.built:
            copy.set_weights(layer.get_weights())
        copy.trainable = layer.trainable
    return made


def _residual_ends(model: Any) -> set[str]:
    """Return the names of the layers that end a residual branch.

    Of the two inputs of an Add, the residual branch is the one with more layers since both parted.
    """
    made_by: dict[int, tuple[str, frozenset[str]]] = {}   # tensor -> its layer, and all layers that it depends on
    alive: list[Any] = []
    ends: set[str] = set()

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = [made_by[id(x)] for x in _tensors(args, kwargs) if id(x) in made_by]
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
    if not ends:
        raise ValueError(f"after='residual' expects Add layers of two branches, got {model.name!r} without any")
    return ends


def _tensors(*values: Any) -> Iterator[Any]:
    return (x for x in keras.tree.flatten(values) if keras.utils.is_keras_tensor(x))


def _create(path: str, name: str, layer: Any, x: Any, options: Mapping[str, Any]) -> Any:
    """Return a new block for the output of a layer."""
    if not keras.utils.is_keras_tensor(x) or not 3 <= len(x.shape) <= 5:
        got = getattr(x, "shape", type(x).__name__)
        raise ValueError(f"expected a tensor with 1 to 3 spatial axes from {path!r}, got {got}")
    data_format = options.get("data_format") or _data_format(layer, len(x.shape))
    channels = x.shape[-1 if data_format == "channels_last" else 1]
    if channels is None:
        raise ValueError(f"expected a known number of channels from {path!r}, got shape {x.shape}")
    arguments = {"data_format": data_format, "dtype": layer.dtype_policy, **options}
    if any(field.name == "spatial_dims" for field in fields(registry.get(name, backend="numpy"))):   # type: ignore[arg-type]
        arguments.setdefault("spatial_dims", len(x.shape) - 2)
    try:
        return registry.create(name, channels, backend="keras", **arguments)
    except (TypeError, ValueError) as err:
        raise type(err)(f"{name} at {path!r}: {err}") from err


def _data_format(layer: Any, rank: int) -> str:
    """Return where a layer has its channels: what it states itself, or that of keras.config."""
    if isinstance(layer, keras.layers.BatchNormalization):
        axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
        return "channels_last" if axis % rank == rank - 1 else "channels_first"
    return str(getattr(layer, "data_format", None) or keras.config.image_data_format())


def _place(path: str, layer: Any, x: Any) -> Place:
    """Return what the report says of a block that attends to x."""
    block = layer.block if isinstance(layer, AttachedBlock) else layer
    shape = [1 if i == 0 else size for i, size in enumerate(x.shape)]
    if block.channels_last:
        shape = [shape[0], shape[-1], *shape[1:-1]]
    macs = None if None in shape else block.spec.macs(tuple(shape))
    parameters = sum(prod(weight.shape) for weight in layer.trainable_weights)
    return Place(path, registry.name_of(block.spec), block.spec.channels, parameters, macs)
