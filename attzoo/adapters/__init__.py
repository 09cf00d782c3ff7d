"""Access to blocks of both frameworks through NumPy arrays, canonical names and channels-first layout.

Canonical names are the keys of a spec's `weights`, such as "channel.excite.weight". Both frameworks have the same.

The modules `torch` and `keras` implement the functions of `Adapter`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol, cast

from ..contract import AnySpec, Array, Coefficients
from ..recording import Tap

NO_BLOCKS: Final = (   # end of an error for a model
    " without any block: traced, exported and cloned copies contain none, so pass the original model, "
    "or add blocks first by attzoo.attach or attzoo.swap"
)


@dataclass(frozen=True)
class Run:
    """Output of a forward pass, and the gradients of sum(output * cotangent) for inputs and trainable weights."""

    output: Array
    input_gradients: tuple[Array, ...]
    weight_gradients: dict[str, Array]


class Adapter(Protocol):
    """Interface of the modules `torch` and `keras` of this package, one for each framework."""

    def make(self, cls: type[Any], config: Mapping[str, Any], dtype: str) -> Any:
        """Return a built block of class `cls` whose weights have `dtype`.

        Raise TypeError or ValueError if `config` is invalid, and ValueError if the backend lacks the dtype.
        """

    def dtype(self, block: Any) -> str:
        """Return the name of the widest dtype of a block's weights, such as "float32" or "bfloat16"."""

    def dtypes(self, block: Any) -> dict[str, str]:
        """Return the name of the dtype of each array of a block, by canonical name. Raise the errors of `read`."""

    def storage(self, dtype: str) -> str:
        """Return the name of the dtype in which the backend stores arrays of `dtype`: on JAX float64 may be float32."""

    def precision(self, dtype: str) -> str:
        """Return the name of the dtype in which the backend computes with arrays of `dtype`, which may be narrower."""

    def read(self, block: Any) -> dict[str, Array]:
        """Return copies of a block's arrays by canonical name; bfloat16 as float32, which is exact.

        For an array that a layer computes (weight norm; in Keras also LoRA), return its current value. Raise ValueError
        if a layer has no such array, or has it with another shape, without values (meta, uninitialized), quantized,
        sharded, or in a dtype that is not floating point, or if in PyTorch the layer also uses other arrays, such as
        LoRA's.
        """

    def write(self, block: Any, arrays: Mapping[str, Array]) -> None:
        """Write arrays to a block in place, by canonical name. Their shapes and dtypes must have been checked.

        Raise ValueError, before any change, if a layer computes one of the arrays and would overwrite the written one.
        """

    def check_layers(self, block: Any, cls: type[Any]) -> None:
        """Raise ValueError unless a block has the layers that its class `cls` creates, with the same settings."""

    def attention(self, block: Any, inputs: Sequence[Array]) -> Coefficients:
        """Return the coefficients for these inputs, in inference mode. Inputs and coefficients are channels first."""

    def forward(self, block: Any, inputs: Sequence[Array], training: bool) -> Array:
        """Return the output (N, C, *S) for these inputs, which are channels first."""

    def run(self, block: Any, inputs: Sequence[Array], cotangent: Array, training: bool) -> Run:
        """Run a forward and a backward pass, and return the output and the gradients of sum(output * cotangent).

        With training=True, running statistics of the block are updated in place.
        """

    def train(self, block: Any, inputs: Sequence[Array], cotangent: Array, steps: int, rate: float) -> None:
        """Minimise sum(output * cotangent) by `steps` steps of SGD with learning rate `rate`, in place."""

    def place(self, model: Any) -> Any:
        """Return the model on a GPU if the framework finds one, else unchanged."""

    def blocks(self, model: Any) -> dict[str, Any]:
        """Return every block of a model by its path. A block with several paths is returned once, with the first.

        The path is as in `named_modules` in torch, and the names of the layers joined by dots in Keras. It is "" if
        the model is a block itself.
        """

    def parts(self, model: Any) -> dict[str, Any]:
        """Return the outermost blocks and networks of attzoo in a model by path, each once.

        For an attached block with start="identity", the layer around it is returned, whose attribute `block` is the
        block. Paths are as in `blocks`, without the names that torch.compile and wrappers such as DataParallel add.
        """

    def gamma(self, holder: Any) -> tuple[Array, str]:
        """Return the weight `gamma` of `holder`, the layer around an attached block, and the name of its dtype.

        In Keras, raise ValueError if its values have another dtype than it declares.
        """

    def set_gamma(self, holder: Any, array: Array) -> None:
        """Write the weight `gamma` of `holder`, the layer around an attached block. Raise ValueError as `write`."""

    def coefficients(self, tensor: Any, block: Any) -> Array | None:
        """Return coefficients of a block as a float32 or float64 array, channels first; None for a traced tensor."""

    def eager(self) -> AbstractContextManager[Any]:
        """Run compiled functions eagerly during the `with` block, where the framework supports this."""


def missing_array(name: str, block: Any, got: Any, remedy: str = "undo the change of this layer") -> ValueError:
    """Return the error for an array that is missing from a block, or has another shape or dtype than its class creates.

    Args:
        name: canonical name of the array.
        block: the block.
        got: what the block has instead.
        remedy: what the user can do.

    """
    expected = f"{name} of {type(block).__name__} as its class creates it, a floating-point array"
    return ValueError(f"expected {expected}, got {str(got)[:200]}: {remedy}")


def computed_array(name: str, block: Any, source: str, remedy: str) -> ValueError:
    """Return the error for writing an array that is not stored, but computed at every call.

    Args:
        name: canonical name of the array.
        block: the block.
        source: what computes the array, such as a parametrization.
        remedy: what the user can do.

    """
    expected = f"{name} of {type(block).__name__} to be stored, so that it can be written"
    return ValueError(f"expected {expected}, got an array that {source} computes: {remedy}")


def changed_layer(path: str, block: Any, created: str, got: str) -> ValueError:
    """Return the error for a layer that differs from the one that the block's class creates.

    Args:
        path: path of the layer in the block; "" is the block itself.
        block: the block.
        created: description of the layer that the class creates.
        got: description of the layer that the block has.

    """
    subject = f"{path} of {type(block).__name__}" if path else "the block"
    return ValueError(
        f"expected {subject} to be {created[:200]}, as its class creates it, got {got[:200]}: files cannot store this "
        "change, so undo the change"
    )


def same_shape(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether two shapes are equal except for axes of size 1, as for a matrix and the kernel of a 1 x 1 convolution."""
    return [n for n in shape if n != 1] == [n for n in expected if n != 1]


def replaced_methods(layer: Any, base: type[Any], call: str) -> list[str]:
    """Return the names of methods that are replaced on an instance of a layer, and that affect the layer's output.

    Args:
        layer: the layer or module.
        base: the framework's base class of layers. Of its methods, only `call` affects the output.
        call: name of the method that computes the output, "call" in Keras and "forward" in torch.

    Returns:
        The names, except `attention` if attention_maps replaced it, because the output does not change then.

    """
    attributes = {name: value for name, value in vars(layer).items() if callable(getattr(type(layer), name, None))}
    return [
        name for name, value in attributes.items()
        if not name.startswith("__") and not isinstance(value, Tap) and (name == call or not hasattr(base, name))
    ]   # fmt: skip


def is_kind(cls: type[Any], kind: type[Any]) -> bool:
    """Whether a class is `kind`, or a subclass that overrides no method on which the output of `kind` depends."""
    if kind not in cls.__mro__:
        return False
    ignored_methods = ("extra_repr", "reset_parameters", "build", "get_config", "from_config")
    subclasses = cls.__mro__[: cls.__mro__.index(kind)]
    methods = {name for subclass in subclasses for name, value in vars(subclass).items() if callable(value)}
    return all(name.startswith("__") or name in ignored_methods or not hasattr(kind, name) for name in methods)


def adapter(backend: str) -> Adapter:
    """Import and return the adapter module of a backend, "torch" or "keras"."""
    return cast(Adapter, import_module(f"{__name__}.{backend}"))


def backend_of(block: Any) -> str:
    """Return the backend of a block, "keras" or "torch". Raise TypeError if it is not a block."""
    backend = framework_of(block)
    if backend is None or not has_spec(block):
        hint = _hint_of_blocks(block, backend)
        raise TypeError(f"expected an attzoo block of torch or Keras, got {type(block).__name__}{hint}")
    return backend


def _hint_of_blocks(model: Any, backend: str | None) -> str:
    """Return the paths of the blocks in a model, as the end of an error that the model is not a block.

    backend: framework of the model; None for other objects, for which the text is "".
    """
    if backend is None:
        return ""
    paths = list(adapter(backend).blocks(model))
    if not paths:
        return NO_BLOCKS
    paths_text = ", ".join(map(repr, paths[:4])) + (", ..." if len(paths) > 4 else "")
    return f", which contains {'blocks' if len(paths) > 1 else 'a block'} at {paths_text}: pass a block"


def framework_of(model: Any) -> str | None:
    """Return the framework of a layer or module, "keras" or "torch", or None for other objects.

    Nothing is imported, because a layer exists only if its framework is loaded. Keras is tried first, because with the
    torch backend its layers are also torch modules.
    """
    for backend, module, base in (("keras", "keras", "Layer"), ("torch", "torch.nn", "Module")):
        base_class = getattr(sys.modules.get(module), base, None)
        if base_class is not None and isinstance(model, base_class):
            return backend
    return None


def has_spec(model: Any) -> bool:
    """Whether `model` is a block or network: it has a spec of attzoo or of a third party."""
    return isinstance(getattr(model, "spec", None), AnySpec)


def can_attend(model: Any) -> bool:
    """Whether `model` is a block: a layer or module with a spec and a method `attention`."""
    return has_spec(model) and callable(getattr(model, "attention", None))
