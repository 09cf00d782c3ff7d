"""How the rest of attzoo reaches into a block of either framework, in NumPy arrays, canonical names, channels first.

`torch.py` and `keras.py` here have the same functions: make, dtype, dtypes, storage, precision, read, write,
check_layers, attention, forward, run, train, and for whole models: place, blocks, coefficients, eager.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol, cast

from ..contract import AnySpec, Array
from ..recording import Tap

NO_BLOCKS: Final = " without any block: a copy that was traced, exported or cloned has none, give the original"


@dataclass(frozen=True)
class Run:
    """One pass through a block: its output, and the gradients of sum(output * cotangent)."""

    output: Array
    input_gradients: tuple[Array, ...]
    weight_gradients: dict[str, Array]


class Adapter(Protocol):
    """What an adapter module offers."""

    def make(self, cls: type[Any], config: Mapping[str, Any], dtype: str) -> Any:
        """A built block of class `cls` whose weights have `dtype`."""

    def dtype(self, block: Any) -> str:
        """The widest dtype of a block's weights, as NumPy spells it ("bfloat16" too)."""

    def dtypes(self, block: Any) -> dict[str, str]:
        """The dtype of each of a block's arrays, by canonical name. Raises ValueError as `read` does."""

    def storage(self, dtype: str) -> str:
        """The dtype in which the backend holds arrays that are to have `dtype`."""

    def precision(self, dtype: str) -> str:
        """The dtype that arithmetic of `dtype` is really carried out in."""

    def read(self, block: Any) -> dict[str, Array]:
        """Copies of a block's arrays by canonical name; bfloat16 comes as float32, which holds it exactly.

        Of an array that a layer computes (weight norm, LoRA) what the layer uses now. Raises ValueError where a layer
        has none, or none in floating point.
        """

    def write(self, block: Any, arrays: Mapping[str, Array]) -> None:
        """Put arrays, already checked, into a block.

        Raises ValueError, before it changes anything, where a layer computes one of them and would not keep it.
        """

    def check_layers(self, block: Any, cls: type[Any]) -> None:
        """Raise ValueError unless a block's layers are those that its class `cls` makes, with the same settings."""

    def attention(self, block: Any, inputs: Sequence[Array]) -> Array:
        """The block's coefficients for these inputs, outside training."""

    def forward(self, block: Any, inputs: Sequence[Array], training: bool) -> Array:
        """The block's output for these inputs."""

    def run(self, block: Any, inputs: Sequence[Array], cotangent: Array, training: bool) -> Run:
        """One forward and backward pass; in training, running statistics move."""

    def train(self, block: Any, inputs: Sequence[Array], cotangent: Array, steps: int, rate: float) -> None:
        """Steps of the framework's own plain SGD on the sum of output * cotangent."""

    def place(self, model: Any) -> Any:
        """The model, on a GPU where the framework finds one."""

    def blocks(self, model: Any) -> dict[str, Any]:
        """Every block that a model holds, by its path; once, under its first path, where it stands in several places.

        In torch that of `named_modules`, in Keras the names of layers, joined by dots; "" where the model is a block.
        """

    def coefficients(self, tensor: Any, block: Any) -> Array | None:
        """What a block's attention gave, as a copy in float32 or float64; None from a trace, which has no numbers."""

    def eager(self) -> AbstractContextManager[Any]:
        """Inside, what the framework would compile and can be asked not to runs eagerly."""


def missing(name: str, block: Any, got: Any) -> ValueError:
    """The error for an array that a block does not hold."""
    return ValueError(f"expected {type(block).__name__} to hold {name} as it was made, got {str(got)[:200]}")


def computed(name: str, block: Any, how: str, remedy: str) -> ValueError:
    """The error for an array that would be written and is computed."""
    return ValueError(f"expected {name} of {type(block).__name__} to be stored, got one that {how} computes: {remedy}")


def changed(path: str, block: Any, made: str, got: str) -> ValueError:
    """The error for a layer that is not as the block's class makes it."""
    return ValueError(
        f"expected {path or 'the block'} of {type(block).__name__} to be {made[:200]}, as its class makes it, got "
        f"{got[:200]}: a file holds no such change; undo it"
    )


def same_shape(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether two shapes are equal but for axes of size 1: a matrix may be the kernel of a 1 x 1 convolution."""
    return [n for n in shape if n != 1] == [n for n in expected if n != 1]


def replaced_methods(part: Any, base: type[Any], call: str) -> list[str]:
    """The methods of a layer's class in whose place the layer has something else that computes.

    Of the methods of the framework's own `base` class only `call` decides what a layer computes. What attention_maps
    puts in the place of `attention` changes nothing.
    """
    own = {name: value for name, value in vars(part).items() if callable(getattr(type(part), name, None))}
    return [
        name for name, value in own.items()
        if not name.startswith("__") and not isinstance(value, Tap) and (name == call or not hasattr(base, name))
    ]   # fmt: skip


def is_kind(cls: type[Any], kind: type[Any]) -> bool:
    """Whether a class is `kind`, or one that inherits all that decides what `kind` computes."""
    if kind not in cls.__mro__:
        return False
    harmless = ("extra_repr", "reset_parameters", "build", "get_config", "from_config")
    own = {name for each in cls.__mro__[: cls.__mro__.index(kind)] for name, v in vars(each).items() if callable(v)}
    return all(name.startswith("__") or name in harmless or not hasattr(kind, name) for name in own)


def adapter(backend: str) -> Adapter:
    """The adapter of a backend, importing its framework."""
    return cast(Adapter, import_module(f"{__name__}.{backend}"))


def backend_of(block: Any) -> str:
    """The backend of a block, "keras" or "torch". Raises TypeError for what is no block of either."""
    backend = framework_of(block)
    if backend is None or not isinstance(getattr(block, "spec", None), AnySpec):
        hint = _inside(block, backend)
        raise TypeError(f"expected an attzoo block of torch or Keras, got {type(block).__name__}{hint}")
    return backend


def _inside(model: Any, backend: str | None) -> str:
    """What to give in the place of a model that is no block."""
    if backend is None:
        return ""
    paths = list(adapter(backend).blocks(model))
    if not paths:
        return NO_BLOCKS
    shown = ", ".join(map(repr, paths[:4])) + (", ..." if len(paths) > 4 else "")
    return f", which holds {'blocks' if len(paths) > 1 else 'a block'} at {shown}: give a block"


def framework_of(model: Any) -> str | None:
    """The framework whose layer or module this is, "keras" or "torch"; None for what is neither's.

    Asked of modules that are loaded already: a layer cannot exist without its framework. Keras goes first, for
    its layers are torch modules too where it runs on torch.
    """
    for backend, module, base in (("keras", "keras", "Layer"), ("torch", "torch.nn", "Module")):
        base_class = getattr(sys.modules.get(module), base, None)
        if base_class is not None and isinstance(model, base_class):
            return backend
    return None


def can_attend(model: Any) -> bool:
    """Whether this is a block: a layer or module with a spec, whose coefficients can be asked for."""
    return isinstance(getattr(model, "spec", None), AnySpec) and callable(getattr(model, "attention", None))
