"""The base class of Keras blocks: a layer with a spec, in both data formats.

Blocks import `keras` only from `ops.keras`, because triton must be loaded first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from inspect import signature
from typing import Any, Final

from ..contract import STARTS, AnySpec, choice, without_idle_rules
from ..hints import arguments_of, unknown_argument
from ..ops import keras as ops
from ..ops import keras_layers
from ..ops.keras import keras

TO_DENSE: Final = {   # classes of tensors that Keras accepts as inputs and blocks do not, and how to convert them
    "RaggedTensor": "x.to_tensor()",
    "SparseTensor": "tf.sparse.to_dense(x)",
    "BCOO": "x.todense()",
}


class Block(keras.layers.Layer):
    """The base class of a block: its spec, layers with the spec's initial weights, checks of inputs, and the call.

    A subclass creates its layers by the methods below, under the canonical names of the spec's weights, and defines
    `attention`. A network, which has no coefficients, overrides `call`.
    """

    def __init__(self, spec: AnySpec, data_format: str | None = None, **kwargs: Any) -> None:
        try:
            super().__init__(**kwargs)
        except ValueError as err:
            owners: tuple[type[Any], ...] = (type(self), Block, keras.layers.Layer)
            option_names = dict.fromkeys(name for owner in owners for name in arguments_of(owner)[0] if name != "spec")
            if unknown := [name for name in kwargs if name not in option_names]:
                raise unknown_argument(type(self).__name__, unknown[0], option_names) from err
            raise
        ops.check_policy(self.dtype_policy)
        self.spec = spec
        self.data_format = ops.data_format_of(data_format)
        self.channels_last = self.data_format == "channels_last"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer. Raise TypeError for inputs in a list, which Keras would accept as one input."""
        if args and isinstance(args[0], (list, tuple)) and all(hasattr(x, "shape") for x in args[0]):
            raise TypeError(f"expected tensors as separate arguments, as block(x, g), got a {type(args[0]).__name__}")
        return super().__call__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the method `attention` of a subclass by `for_symbols_and_variables`."""
        super().__init_subclass__(**kwargs)
        if "attention" in vars(cls):
            cls.attention = for_symbols_and_variables(cls.attention)

    def linear(self, name: str) -> Any:
        """Return the layer for the linear map `name` of the spec: dense, or a convolution with stride = kernel size.

        It is a convolution if the spec's weight has spatial axes, (O, I, *k).
        """
        weight, bias = self.spec.weights[f"{name}.weight"], self.spec.weights.get(f"{name}.bias")
        if weight.shape[2:]:
            return ops.Conv(weight, bias, "strided", name=name, dtype=self.dtype_policy)
        return keras.layers.Dense(
            weight.shape[0],
            use_bias=bias is not None,
            kernel_initializer=ops.initialize(weight),
            bias_initializer=ops.initialize(bias),
            name=name,
            dtype=self.dtype_policy,
        )

    def conv_same(self, name: str, padding_mode: str = "zeros", dilation: int = 1) -> ops.Conv:
        """Return the convolution with the kernel and bias `name` of the spec, padded to keep the size.

        The number of groups follows from the kernel, (O, I / groups, *k). See `ops.Conv` for `dilation`.
        """
        weight, bias = self.spec.weights[f"{name}.weight"], self.spec.weights.get(f"{name}.bias")
        return ops.Conv(weight, bias, padding_mode, dilation, name=name, dtype=self.dtype_policy)

    def batch_norm(self, name: str) -> Any:
        """Return the layer for batch norm `name` of the spec, or the identity if the spec has none."""
        weight = self.spec.weights.get(f"{name}.weight")
        if weight is None:
            return ops.Identity(name=name, dtype=self.dtype_policy)
        return ops.BatchNorm(ops.initialize(weight), name=name, dtype=self.dtype_policy)

    def layer_norm(self, name: str, epsilon: float = ops.EPSILON) -> ops.LayerNorm:
        """Return the layer for layer norm `name` of the spec."""
        return ops.LayerNorm(epsilon, name=name, dtype=self.dtype_policy)

    def group_norm(self, name: str, groups: int) -> ops.GroupNorm:
        """Return the layer for group norm `name` of the spec."""
        return ops.GroupNorm(groups, name=name, dtype=self.dtype_policy)

    def check_inputs(self, *inputs: Any) -> None:
        """Build the layer if it is not built. Raise an error unless the inputs are valid.

        Raises ValueError for a shape that the spec refuses, and TypeError for inputs that are not floating-point
        tensors.
        """
        for x in inputs:
            if not hasattr(x, "shape") or not hasattr(x, "dtype"):
                hint = ": convert it, as keras.ops.convert_to_tensor does" if isinstance(x, (list, tuple)) else ""
                raise TypeError(f"expected a tensor, got {type(x).__name__}{hint}")
            if conversion := TO_DENSE.get(type(x).__name__):
                raise TypeError(f"expected a dense tensor, got a {type(x).__name__}: convert it, as {conversion} does")
        self.spec.check_inputs(*(x.shape for x in inputs), channels_last=self.channels_last)
        for x in inputs:
            if not keras.backend.is_float_dtype(kind := keras.backend.standardize_dtype(x.dtype)):
                hint = ": convert it, as keras.ops.cast does, and scale it as in training"
                raise TypeError(f"expected a floating-point input, got {kind}{hint}")
        if not self.built:
            self.build(*(x.shape for x in inputs))

    def call(self, x: Any, training: bool | None = None, attention_only: bool = False) -> Any:
        """Return the output for x, (N, *S, C) or (N, C, *S); with `attention_only`, return the coefficients instead."""
        coefficients = self.attention(x, training=training)
        return coefficients if attention_only else self.spec.combine(x, coefficients, ops)   # type: ignore[attr-defined]

    def compute_output_shape(self, *shapes: Any) -> Any:
        """Return the shape of the output, that of x. Raise ValueError for shapes that the spec refuses."""
        self.spec.check_inputs(*shapes, channels_last=self.channels_last)
        return shapes[0]

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of a symbolic call: the shape of the first input, in the compute dtype."""
        arguments = signature(self.call).bind(*args, **kwargs).arguments.values()
        inputs = [x for x in arguments if hasattr(x, "shape")]   # KerasTensors and tensors
        self.check_inputs(*inputs)
        if kwargs.get("attention_only"):
            return keras.Operation.compute_output_spec(self, *args, **kwargs)   # traces the call
        return keras.KerasTensor(inputs[0].shape, dtype=self.compute_dtype)

    def quantize(self, mode: str | None = None, type_check: bool = True, config: Any = None) -> None:
        """Quantize the dense layers of the block in place; arguments as keras.layers.Layer.quantize.

        Raises NotImplementedError for a block without dense layers.
        """
        inner_layers = [part for part in self._flatten_layers(include_self=False) if type(part) is keras.layers.Dense]
        if not inner_layers:
            got = f"got {type(self).__name__}, which has none"
            raise NotImplementedError(f"expected a block with dense layers, which Keras can quantize, {got}")
        for layer in inner_layers:
            layer.quantize(mode, type_check=type_check, config=config)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, and the settings of sublayers that differ from those of the block."""
        config = super().get_config() | self.spec.config() | {"data_format": self.data_format}
        return config | keras_layers.inner_settings(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return a block from the result of `get_config` of this or an older version."""
        spec, arguments = _spec_class(cls), keras_layers.without_inner_settings(config)
        block = cls(**(without_idle_rules(spec, arguments) if spec else arguments))
        return keras_layers.with_inner_settings(block, config)


def for_symbols_and_variables(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Return a block's method `attention`, wrapped so that it accepts KerasTensors and variables too.

    For a KerasTensor the block is called as a layer, with `attention_only`: a model that contained the operations or
    inner layers of the block instead could not be reloaded. The value of a tf.Variable is used.
    Floating-point inputs are cast to the block's compute dtype, as in a call of the block.
    """

    @wraps(attention)
    def call(block: Any, *inputs: Any, **kwargs: Any) -> Any:
        """Return the coefficients for inputs that may be KerasTensors or variables."""
        if any(keras.utils.is_keras_tensor(x) for x in (*inputs, *kwargs.values())):
            return block(*inputs, **kwargs, attention_only=True)
        return attention(block, *(_as_called(block, without_variable(x)) for x in inputs), **kwargs)

    return call


def without_variable(x: Any) -> Any:
    """Return the value of x if it is a tf.Variable, which has no `ndim`; else x itself."""
    return x[...] if hasattr(x, "read_value") else x   # only a tf.Variable has this method


def _as_called(block: Any, x: Any) -> Any:
    """Return x cast to the block's compute dtype if x is floating point, as in a call of the layer; else x itself."""
    if not block.autocast or not hasattr(x, "dtype"):
        return x
    kind = keras.backend.standardize_dtype(x.dtype)
    if kind == block.compute_dtype or not keras.backend.is_float_dtype(kind):
        return x
    return keras.ops.cast(x, block.compute_dtype)


def _spec_class(cls: type[Any]) -> Any:
    """Return the class of a block's spec, from the module `spec` beside the block's own; None if there is none."""
    for base in cls.__mro__:
        module = sys.modules.get(f"{base.__module__.rpartition('.')[0]}.spec")
        if is_dataclass(spec_class := getattr(module, base.__name__, None)):
            return spec_class
    return None


@ops.register
class AttachedBlock(keras.layers.Layer):
    """A block that `attach` has put into a model: (N, *S, C) -> (N, *S, C), with the mask of its input.

    Args:
        block: the block.
        start: "default" computes block(x); "identity" x + gamma * (block(x) - x), where the weight gamma, of shape
            (1,), is 0 at first.

    """

    def __init__(self, block: Any, start: str = "default", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block = block
        self.supports_masking = block.supports_masking = True   # masks are passed on; a block's averages ignore them
        self.start = choice("start", start, STARTS)

    def build(self, shape: Any) -> None:
        """Create the variables of the block and, with start="identity", gamma."""
        if not self.block.built:
            self.block.build(shape)
        if self.start == "identity":
            self.gamma = self.add_weight(name="gamma", shape=(1,), initializer="zeros")

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Return the output for x: that of the block or, with start="identity", x + gamma * (block(x) - x)."""
        y = self.block(x, training=training)
        return y if self.start == "default" else x + self.gamma * (y - x)

    def compute_output_shape(self, shape: Any) -> Any:
        """Return the shape of the output, that of the input."""
        return shape

    def get_config(self) -> dict[str, Any]:
        """Return the config, including the config of the block."""
        block = keras.saving.serialize_keras_object(self.block)
        return super().get_config() | {"block": block, "start": self.start}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return a layer from the result of `get_config`."""
        return cls(**config | {"block": keras.saving.deserialize_keras_object(config["block"])})
