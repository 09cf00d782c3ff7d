"""Sublayers of Keras blocks and models: their paths, and the settings that configs of Keras do not store."""

from __future__ import annotations

from typing import Any

from .keras import Conv, keras, path_of

# Keys in a config, for sublayers: dtype policies that differ from the layer's own, and changed values of `trainable`
POLICIES, TRAINABLE = "layer_policies", "layer_trainable"


def parts_of(layer: Any) -> dict[str, Any]:
    """Return the direct sublayers of a layer by name of the attribute; for a model, its layers by their own names.

    A sublayer in a list has the name "layer <i>", where i is its index among the sublayers.
    """
    parts = layer._flatten_layers(include_self=False, recursive=False)   # there is no public API for them
    attributes = vars(layer) | vars(layer).get("_modules", {})   # with the torch backend: submodules of torch
    names = {id(value): name for name, value in attributes.items()}
    is_model = isinstance(layer, keras.Model)
    return {part.name if is_model else names.get(id(part), f"layer {i}"): part for i, part in enumerate(parts)}


def inner_settings(layer: Any) -> dict[str, Any]:
    """Return config entries for the sublayers whose dtype policy or `trainable` differs from that of the layer.

    A path consists of the names of `parts_of`, joined by "/". The entry POLICIES maps paths to the serialized dtype
    policy and quantization config, and TRAINABLE maps paths to `trainable`.

    Policies are compared with the layer's own; quantization sets others. `trainable` is compared with that of the
    layer around the sublayer, in models only: Keras loses it if it is set on a sublayer of a layer that is not built.
    The result is empty if nothing differs.
    """
    policies: dict[str, Any] = {}
    trainable: dict[str, bool] = {}

    def walk(path: str, parent: Any) -> None:
        """Add the entries of the sublayers of layer `parent`, whose path ends in "/"."""
        for name, part in parts_of(parent).items():
            if not _equal_policies(part, layer) and not isinstance(part, keras.layers.InputLayer):
                quantization = getattr(part, "quantization_config", None)
                policies[f"{path}{name}"] = {
                    "dtype": keras.dtype_policies.serialize(part.dtype_policy),
                    "quantization_config": keras.saving.serialize_keras_object(quantization),
                }
            if isinstance(layer, keras.Model) and part.trainable != parent.trainable:
                trainable[f"{path}{name}"] = part.trainable
            walk(f"{path}{name}/", part)

    walk("", layer)
    entries: dict[str, Any] = {POLICIES: policies, TRAINABLE: trainable}
    return {key: entry for key, entry in entries.items() if entry}


def _equal_policies(first: Any, second: Any) -> bool:
    """Whether two layers have equal dtype policies."""
    # DTypePolicyMap does not define ==.
    first_policy, second_policy = (keras.dtype_policies.serialize(layer.dtype_policy) for layer in (first, second))
    return bool(first_policy == second_policy)


def without_inner_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without the entries of `inner_settings`."""
    return {name: value for name, value in config.items() if name not in (POLICIES, TRAINABLE)}


def _sublayer(layer: Any, path: str) -> Any:
    """Return the sublayer at a path of `inner_settings`. Raise ValueError if no sublayer has this path."""
    part = layer
    for name in path.split("/"):
        part = parts_of(part).get(name)
        if part is None:
            fix = "load the config with the class and the version of attzoo that wrote it"
            raise ValueError(f"expected a layer {path} in {type(layer).__name__}, as in the config, got none: {fix}")
    return part


def with_inner_settings(layer: Any, config: dict[str, Any]) -> Any:
    """Apply the entries of `inner_settings` in a config to the sublayers, and return the layer.

    Sublayers that were quantized are quantized again.

    Raises ValueError if a sublayer does not exist.
    """
    for path, trainable in (config.get(TRAINABLE) or {}).items():   # outer layers first: they set inner ones
        _sublayer(layer, path).trainable = trainable
    for path, entry in (config.get(POLICIES) or {}).items():
        part = _sublayer(layer, path)
        quantization = keras.saving.deserialize_keras_object(entry["quantization_config"])
        if part.built and quantization is not None:
            part.quantize(config=quantization)
        elif quantization is not None:
            part.quantization_config = quantization
        part.dtype_policy = keras.dtype_policies.get(entry["dtype"])
    return layer


def named(layer: Any, path: str) -> Any:
    """Store on a layer its canonical path and its description at this time, and return the layer.

    The path is stored, because names of layers allow no dots in Keras on torch.
    """
    layer.canonical, layer.made = path, described(layer)
    return layer


def described(layer: Any) -> str:
    """Return the class of a layer, and those of its settings that affect its output, as text."""
    try:
        is_conv = isinstance(layer, Conv)
        config = {"mode": layer.mode, "dilation": layer.dilation} if is_conv else layer.get_config()
    except NotImplementedError:   # a third party's
        config = {}
    ignored_endings = ("name", "trainable", "dtype", "initializer", "regularizer", "constraint", "quantization_config")
    ignored_settings = ("lora_", POLICIES)
    settings = [
        f"{key}={value!r}"
        for key, value in config.items()
        if not key.endswith(ignored_endings) and not key.startswith(ignored_settings)
    ]
    return f"{type(layer).__name__}({', '.join(settings)})"


def check_unchanged(model: Any) -> None:
    """Raise ValueError if settings of a layer have changed since its creation, which a config cannot store."""
    for layer in model.layers:
        if changed_setting := changed_settings(layer):
            hint = "undo the change, or save only the weights, with save_weights()"
            created, current = changed_setting
            expected = f"{path_of(layer)} to be {created}, as the model creates it"
            raise ValueError(f"expected {expected}, got {current}: {hint}")


def changed_settings(layer: Any) -> tuple[str, str] | None:
    """Return a layer's settings at its creation, as `named` stored them, and now, as texts; None if equal."""
    created = getattr(layer, "made", None)
    if created is None or created == (current := described(layer)):
        return None
    return created, current
