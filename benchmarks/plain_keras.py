"""The blocks as one writes them straightforwardly in Keras, of its own layers: what attzoo's are timed against.

Functional models, made in the data format and dtype policy that Keras is set to. Layers are named by the canonical
paths of their weights, with "_" for ".".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from attzoo.contract import Array
from attzoo.ops.keras import keras

layers, ops = keras.layers, keras.ops
NORM: Final = {"weight": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def build(block: str, spec: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
    """The model for a block's spec and the shapes of its inputs, (N, C, H, W). Raises ValueError for what it has not.

    Any batch size is taken.
    """
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(f"expected images, got inputs of shapes {shapes}")
    last = axis() == -1
    sizes = [(*space, channels) if last else (channels, *space) for _, channels, *space in shapes]
    inputs = [keras.Input(size, dtype=keras.config.dtype_policy().compute_dtype) for size in sizes]
    model = keras.Model(inputs, BLOCKS[block](spec, *inputs))
    model.spec, model.data_format = spec, keras.config.image_data_format()
    return model


def axis() -> int:
    """Where the channels are."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def per_channel(z: Any) -> Any:
    """(N, C), shaped to multiply an image."""
    return layers.Reshape((1, 1, z.shape[-1]) if axis() == -1 else (z.shape[-1], 1, 1))(z)


def se(spec: Any, x: Any) -> Any:
    """Squeeze and excitation."""
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Dense(spec.width, activation="relu", use_bias=spec.bias, name="squeeze")(s)
    s = layers.Dense(spec.channels, activation=spec.gate, use_bias=spec.bias, name="excite")(s)
    return layers.Multiply()([x, per_channel(s)])


def eca(spec: Any, x: Any) -> Any:
    """Efficient channel attention."""
    if spec.padding != "zeros":
        raise ValueError(f"expected padding with zeros, got {spec.padding!r}")
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Reshape((spec.channels, 1))(s)
    s = layers.Conv1D(1, spec.k, padding="same", use_bias=False, data_format="channels_last", name="conv")(s)
    s = layers.Activation("sigmoid")(layers.Flatten()(s))
    return layers.Multiply()([x, per_channel(s)])


def channel_attention(spec: Any, x: Any, prefix: str = "") -> Any:
    """CBAM's channel attention."""
    squeeze = layers.Dense(spec.width, activation="relu", use_bias=spec.bias, name=f"{prefix}squeeze")
    excite = layers.Dense(spec.channels, use_bias=spec.bias, name=f"{prefix}excite")
    pools = layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)
    s = layers.Add()([excite(squeeze(s)) for s in pools])
    return layers.Multiply()([x, per_channel(layers.Activation(spec.gate)(s))])


def spatial_attention(spec: Any, x: Any, prefix: str = "") -> Any:
    """CBAM's spatial attention."""
    pools = ops.mean(x, axis=axis(), keepdims=True), ops.max(x, axis=axis(), keepdims=True)
    s = layers.Concatenate(axis=axis())(pools)
    s = layers.Conv2D(1, spec.kernel_size, padding="same", use_bias=False, name=f"{prefix}conv")(s)
    s = norm(f"{prefix}norm")(s) if spec.norm else s
    return layers.Multiply()([x, layers.Activation("sigmoid")(s)])


def cbam(spec: Any, x: Any) -> Any:
    """CBAM."""
    return spatial_attention(spec.spatial, channel_attention(spec.channel, x, "channel_"), "spatial_")


def attention_gate(spec: Any, x: Any, g: Any) -> Any:
    """The additive gate; a coarser gating signal is brought to x's size after its projection."""
    if spec.align_corners:
        raise ValueError("expected align_corners=False, which is how Keras's layers resample")
    t = layers.Conv2D(spec.width, spec.strides, spec.strides, use_bias=spec.skip_bias, name="skip")(x)
    p = layers.Conv2D(spec.width, 1, name="gating")(g)
    if spec.norm:
        t, p = norm("skip_norm")(t), norm("gating_norm")(p)
    h = layers.Activation("relu")(layers.Add()([t, resample(p, t, spec.interpolation)]))
    q = layers.Conv2D(1, 1, name="psi")(h)
    q = norm("psi_norm")(q) if spec.norm else q
    a = resample(layers.Activation("sigmoid")(q), x, spec.interpolation)
    y = layers.Multiply()([x, a])
    if spec.output_transform:
        y = norm("output_norm")(layers.Conv2D(spec.channels, 1, name="output")(y))
    return y


def norm(name: str) -> Any:
    """A batch norm that begins as torch's does."""
    return layers.BatchNormalization(axis(), momentum=0.9, epsilon=1e-5, name=name)


def resample(g: Any, x: Any, interpolation: str) -> Any:
    """Bring g to x's size, which must be a multiple of its own."""
    space = slice(1, 3) if axis() == -1 else slice(2, 4)
    old, new = g.shape[space], x.shape[space]
    if old == new:
        return g
    if any(b % a for a, b in zip(old, new, strict=True)):
        raise ValueError(f"expected sizes that are multiples of {old}, got {new}")
    factors = tuple(b // a for a, b in zip(old, new, strict=True))
    return layers.UpSampling2D(factors, interpolation={"linear": "bilinear"}.get(interpolation, interpolation))(g)


BLOCKS: Final[dict[str, Callable[..., Any]]] = {
    block.__name__: block for block in (se, eca, channel_attention, spatial_attention, cbam, attention_gate)
}


# ---- weights ---------------------------------------------------------------------------------------------------------


def find(model: Any, name: str) -> Any:
    """The variable that holds a canonical array."""
    path, _, leaf = name.rpartition(".")
    layer = model.get_layer(path.replace(".", "_"))
    if isinstance(layer, layers.BatchNormalization):
        return getattr(layer, NORM[leaf])
    return layer.kernel if leaf == "weight" else layer.bias


def load(model: Any, arrays: Mapping[str, Array]) -> None:
    """Give a model these arrays, by canonical name."""
    for name, array in arrays.items():
        variable = find(model, name)
        variable.assign(as_kernel(array, variable.shape) if variable.name == "kernel" else array)


def as_kernel(array: Array, shape: Sequence[int]) -> Array:
    """(O, I, *k), without axes of 1 or with them, as Keras has it: (*k, I, O)."""
    return np.moveaxis(array.reshape(*shape[:-3:-1], *shape[:-2]), (0, 1), (-1, -2))
