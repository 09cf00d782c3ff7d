"""Put blocks into functional Keras models: create a new model with copies of the layers and their weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import prod
from typing import Any, Final

from .. import registry
from ..adapters import can_attend
from ..blocks.keras import AttachedBlock
from ..ops.keras import keras
from .create import check_one_input, create
from .keras_copy import copy_model, functional, layers_of
from .keras_same import is_product, same_block
from .match import select
from .report import Entry, Report
from .start import check_start

NORMS: Final = (   # layers whose argument `axis` is the channel axis
    keras.layers.BatchNormalization, keras.layers.GroupNormalization, keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)   # fmt: skip


def attach(model: Any, name: str, after: Any, start: str, example: Any, options: Mapping[str, Any]) -> Report:
    """Implement `attzoo.attach` for Keras models."""
    source = functional(model)
    _check_one_input(name)
    layers = layers_of(source)
    paths = _residual_ends(source) if after == "residual" else set(select(layers, after, "after", source.name))
    if with_block := [path for path in sorted(paths) if f"{path}_attention" in layers]:
        raise ValueError(f"expected no layer '{with_block[0]}_attention', got a model that has one: detach it first")
    inserted: dict[str, tuple[Any, Entry]] = {}

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a layer of the copied model, and the block after it if the layer is selected."""
        y = layer(*args, **kwargs)
        if path not in paths:
            return y
        _check_first_call(path, inserted)
        block = _create(path, name, original, y, {"name": "block", **_with_format(options, original, y, layers)})
        check_start(f"{path}_attention", block.spec, start)
        attached = AttachedBlock(block, start, name=f"{layer.name}_attention", dtype=block.dtype_policy)
        attended = attached(y)
        attached.trainable = options.get("trainable", True)
        inserted[path] = attached, _entry(f"{path}_attention", attached, y)
        return attended

    copied = copy_model(source, call)
    _check_called(paths, inserted)
    return _report(copied, inserted, options)


def detach(model: Any) -> Report:
    """Implement `attzoo.detach` for Keras models."""
    source = functional(model)
    entries: list[Entry] = []

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a layer of the copied model unless it is an attached block, whose input is returned."""
        if not isinstance(layer, AttachedBlock):
            return layer(*args, **kwargs)
        entries.append(_entry(path, original, args[0]))
        return args[0]

    copied = copy_model(source, call)
    if not entries:
        raise ValueError(f"expected a model with blocks of attzoo.attach, got {model.name!r} without any")
    return Report(copied, tuple(entries))


def swap(model: Any, name: str, where: Any, example: Any, options: Mapping[str, Any]) -> Report:
    """Implement `attzoo.swap` for Keras models."""
    source = functional(model)
    _check_one_input(name)
    layers = select(layers_of(source), where, "where", source.name)
    for path, layer in layers.items():
        if not can_attend(layer) and not is_product(layer):
            hint = "in Keras, swap replaces blocks of attzoo, and the Multiply layer at the end of other attention"
            hint = "detach it, and attach the other block" if isinstance(layer, AttachedBlock) else hint
            raise ValueError(f"expected a block of attzoo at {path!r}, got {type(layer).__name__}: {hint}")
    all_layers, inserted = layers_of(source), dict[str, tuple[Any, Entry]]()
    replaced: dict[str, list[Any]] = {}   # path of a block with the weights of layers -> these layers

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a layer of the copied model, or the block that replaces it if the layer is selected."""
        if path not in layers:
            return layer(*args, **kwargs)
        if not can_attend(original):   # a product, whose calls have different coefficients
            _check_first_call(path, inserted)
        x = args[0] if can_attend(original) else args[0][0]
        if path not in inserted:
            block_options = {"name": original.name, **_with_format(options, original, x, all_layers)}
            block, entry, replaced[path] = _replacement(path, name, original, x, block_options)
            inserted[path] = block, entry
        return inserted[path][0](x)

    copied = copy_model(source, call)
    _check_called(layers, inserted)
    _check_not_shared(replaced, all_layers, layers_of(copied))
    return _report(copied, inserted, options)


def _check_not_shared(replaced: Mapping[str, list[Any]], before: Mapping[str, Any], after: Collection[str]) -> None:
    """Raise ValueError if layers whose weights a block has got are used elsewhere, where they would have a copy.

    Args:
        replaced: the layers that each block replaces, by path of the block.
        before: the layers of the model by path.
        after: the paths of the layers of the new model.

    """
    paths = {id(layer): path for path, layer in before.items()}
    users: dict[str, str] = {}
    for block_path, layers in replaced.items():
        for path in (paths[id(layer)] for layer in layers):
            if path in users or path in after:
                user = f"in {users[path]!r} and {block_path!r}" if path in users else "elsewhere too"
                fix = "call one block at both positions, in the code that creates the model"
                raise ValueError(f"expected layers used by one attention only, got {path!r}, used {user}: {fix}")
            users[path] = block_path


def _report(model: Any, inserted: Mapping[str, tuple[Any, Entry]], options: Mapping[str, Any]) -> Report:
    """Return the report of the layers in `inserted`, after setting their `trainable`.

    `trainable` is the option of this name, else True, in frozen nested models too; for a block that got the weights of
    other layers, it is the value of these layers. It is set after the layers are built and after `copy_model`, because
    Keras loses it otherwise.
    """
    for layer, entry in inserted.values():
        default = entry.parameters > 0 or entry.weights == "initial"   # no parameters are trainable in a frozen block
        layer.trainable = True
        layer.trainable = options.get("trainable", default)
    return Report(model, tuple(entry for _, entry in inserted.values()))


def _replacement(
    path: str, name: str, layer: Any, x: Any, options: Mapping[str, Any]
) -> tuple[Any, Entry, list[Any]]:
    """Return the block that replaces a layer, its entry in the report, and the layers whose weights it has.

    The block has the weights of the layer, or of the layers before it, if it computes the same as they do.

    Args:
        path: path of the layer in the model.
        name: name of the block.
        layer: the layer.
        x: the symbolic input of the block.
        options: the user's arguments of the block.

    """

    def create_block(arguments: Mapping[str, Any]) -> Any:
        """Return a new block with these arguments."""
        return _create(path, name, layer, x, arguments)

    block, layers = (None, []) if can_attend(layer) else same_block(layer, name, options, create_block)
    if block is not None:
        return block, _entry(path, block, x, "Keras"), layers
    block = create_block(options)
    block(x)   # creates its weights
    block.trainable = options.get("trainable", True)
    return block, _entry(path, block, x), []


def _check_one_input(name: str) -> None:
    """Raise ValueError if block `name` takes a gating signal."""
    hint = 'use attzoo\'s UNet with skip="attention_gate", or call the block where the model has both tensors'
    check_one_input(name, "layer", hint)


def _check_first_call(path: str, inserted: Collection[str]) -> None:
    """Raise ValueError if the layer at `path` was called before; `inserted` has the paths of the calls so far."""
    if path in inserted:
        got = "a layer that the model calls several times: choose another layer"
        raise ValueError(f"expected {path!r} to be called once, got {got}")


def _check_called(paths: Collection[str], inserted: Collection[str]) -> None:
    """Raise ValueError if a selected layer in `paths` was not called, such as an input layer."""
    if missing := sorted(set(paths) - set(inserted)):
        got = f"{missing[0]!r}, which it does not call: choose another layer"
        raise ValueError(f"expected layers that the model calls, got {got}")


def _residual_ends(model: Any) -> set[str]:
    """Return the paths of the layers that end a residual branch, which is one of the two inputs of an Add.

    Of the two inputs, the residual branch is the one with more layers on which the other input does not depend.
    """
    # id of a tensor -> the path of the layer that computes it, the paths of this layer and all layers before it
    layers_by_tensor: dict[int, tuple[str, frozenset[str]]] = {}
    held_tensors: list[Any] = []
    ends: set[str] = set()
    model_input: tuple[str, frozenset[str]] = "", frozenset()   # no layers

    def call(path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a layer, store which layers its output depends on and, for an Add, the end of the residual branch."""
        inputs = [layers_by_tensor.get(id(x), model_input) for x in _tensors(args, kwargs)]
        if type(layer).__name__ == "Add" and len(inputs) == 2:   # a layer, or the operation of x + y
            (first, layers_of_first), (second, second_layers) = inputs
            ends.add(first if len(layers_of_first - second_layers) > len(second_layers - layers_of_first) else second)
        y = layer(*args, **kwargs)
        layers_before = frozenset({path}).union(*(layers for _, layers in inputs))
        for tensor in _tensors(y):
            layers_by_tensor[id(tensor)] = path, layers_before
            held_tensors.append(tensor)   # so that no id is reused
        return y

    copy_model(model, call)
    if not (ends := ends - {""}):
        raise ValueError(f"after='residual' expects Add layers of two branches, got {model.name!r} without any")
    return ends


def _tensors(*values: Any) -> Iterator[Any]:
    """Return the Keras tensors in nested values."""
    return (x for x in keras.tree.flatten(values) if keras.utils.is_keras_tensor(x))


def _create(path: str, name: str, layer: Any, x: Any, options: Mapping[str, Any]) -> Any:
    """Return a new block for x, the symbolic output of a layer.

    path: path of the layer in the model. name: name of the block. options: the user's arguments of the block.
    """
    if not keras.utils.is_keras_tensor(x) or not 3 <= len(x.shape) <= 5:
        got = getattr(x, "shape", type(x).__name__)
        raise ValueError(f"expected a tensor with 1 to 3 spatial axes from {path!r}, got {got}: choose another layer")
    channels = x.shape[-1 if options["data_format"] == "channels_last" else 1]
    if channels is None:
        raise ValueError(f"expected a known number of channels from {path!r}, got shape {x.shape}: set it in the Input")
    block_options = {"dtype": _policy(layer, x), **options}
    block_options.pop("trainable", None)   # set when the layer is built, as TensorFlow ignores an equal assignment
    return create(path, name, "keras", channels, len(x.shape) - 2, block_options)


def _policy(layer: Any, x: Any) -> Any:
    """Return the dtype policy for a block after a layer, whose output is x.

    It is that of the layer; after an operation, it is the global policy if that computes in the dtype of x, else x's
    dtype.
    """
    if isinstance(layer, keras.layers.Layer):
        return layer.dtype_policy
    policy = keras.config.dtype_policy()
    return policy if policy.compute_dtype == x.dtype else x.dtype


def _with_format(options: Mapping[str, Any], layer: Any, x: Any, layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with "data_format": the given one, else that of the layer, the other layers or keras.config.

    Raises ValueError if the layer declares none and the other layers have different ones.
    """
    if options.get("data_format") is not None:
        return dict(options)
    own_format = _data_format(layer)
    other_formats = {data_format for data_format in map(_data_format, layers.values()) if data_format is not None}
    if own_format is None and len(other_formats) > 1:
        got = "channels_first and channels_last: give data_format="
        raise ValueError(f"expected layers of one data format around {layer.name!r}, got {got}")
    return dict(options) | {"data_format": own_format or next(iter(other_formats), keras.config.image_data_format())}


def _data_format(layer: Any) -> str | None:
    """Return the data format of a layer; None if it declares none."""
    if isinstance(layer, keras.layers.Flatten):   # its setting may differ from the format of its input
        return None
    if isinstance(layer, NORMS):
        axes = [layer.axis] if isinstance(layer.axis, int) else [*layer.axis]
        rank = len(layer.get_build_config()["input_shape"])
        formats = {1: "channels_first", rank - 1: "channels_last"}
        return formats.get(axes[0] % rank) if len(axes) == 1 and rank > 2 else None
    return getattr(layer, "data_format", None)


def _entry(path: str, layer: Any, x: Any, weights: str = "initial") -> Entry:
    """Return the report's entry for `layer`, a block or the layer around it, applied to the symbolic tensor x."""
    block = layer.block if isinstance(layer, AttachedBlock) else layer
    shape = [1 if i == 0 else size for i, size in enumerate(x.shape)]
    if block.channels_last:
        shape = [shape[0], shape[-1], *shape[1:-1]]
    macs = None if None in shape else block.spec.macs(tuple(shape))
    parameters = sum(prod(weight.shape) for weight in layer.trainable_weights)
    return Entry(path, registry.name_of(block.spec), block.spec.channels, parameters, macs, weights)
