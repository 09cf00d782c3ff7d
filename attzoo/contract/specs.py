"""Interfaces of specs, and descriptions of variants, examples and blocks of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from .arrays import Array, Coefficients
from .weights import Weight


@runtime_checkable
class AnySpec(Protocol):
    """Interface of the spec of a block or network.

    A spec is a frozen dataclass whose fields are the arguments. The number of inputs depends on the block, so the
    methods accept any positional arguments here.
    """

    @property
    def inputs(self) -> tuple[int, ...]:
        """Number of channels of each input."""

    @property
    def weights(self) -> dict[str, Weight]:
        """Description of every array by canonical name."""

    def config(self) -> dict[str, Any]:
        """Return the arguments that create the same block or network, with every None replaced by its value."""

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError if the block does not accept inputs of these shapes.

        Called with (*shapes, channels_last=False): (N, C, *S), or (N, *S, C) with channels_last.
        """

    def macs(self, *args: Any, **kwargs: Any) -> int:
        """Return the number of multiply-adds of the linear maps. Called with the input shapes, (N, C, *S) each."""

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """Compute the output in the dtype of the inputs. Called with (*inputs, weights=..., training=False).

        Inputs and output are channels first, (N, C, *S), and `weights` is a dict of arrays by canonical name.
        With training=True, running statistics in `weights` are updated in place.
        """


@runtime_checkable
class Spec(AnySpec, Protocol):
    """Interface of the spec of a block, whose output has the shape of its first input."""

    @property
    def channels(self) -> int:
        """C, the number of channels of the first input and of the output."""

    def attention(self, *args: Any, **kwargs: Any) -> Coefficients:
        """Compute the coefficients that are combined with x. Called as the spec itself."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A published choice of arguments.

    Attributes:
        source: the publication or code that defines it.
        arguments: values by argument.
        rules: for each argument that depends on the others, such as a rounded width, the function that returns its
            value from the spec of the other arguments.

    """

    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """A small block for tests, tables and documentation.

    Attributes:
        arguments: arguments of the spec, including `channels`.
        shapes: the shape (N, C, *S) of each input, channels first.

    """

    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Keys:
    """The layout in which a state dict of another library stores the arrays of a block.

    KEYS of `sources.py` in a block's folder lists the layouts that can be read and written, by name of the library.

    Args:
        names: canonical name of every array -> its key in the state dict.
        axes: number of axes of size 1 after the matrices of linear maps, as in convolutions of size 1; None for
            the block's number of spatial axes. A mapping has the number for each canonical name, 0 for others.
        max_first: canonical names of convolutions whose first input plane is the maximum. In attzoo it is the mean.
        channels_last: whether kernels are those of Keras, (*k, I, O), and keys are paths of variables, which begin with
            the name of a layer. The names of the layers of a block may have a common prefix.
        vectors: canonical names of arrays with one axis that have further axes of size 1 in the library -> the numbers
            of such axes before and after it.
        product: in Keras, the name after this prefix of the Multiply layer at the end of the block, whose name the
            block has after `swap`; "" if the layers of the block are not replaced by `swap`.

    """

    names: Mapping[str, str]
    axes: int | Mapping[str, int] | None = 0
    max_first: tuple[str, ...] = ()
    channels_last: bool = False
    vectors: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    product: str = ""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A module of another library whose weights a block cannot represent, for errors that give the reason.

    UNSUPPORTED of `sources.py` in a block's folder lists them.

    Args:
        library: name of the library, as `source` in `load_weights`.
        module: the class, and the argument of the class that makes it differ, as text.
        reason: how it differs from the block, and what the user can do, as text.
        keys: keys by which its state dict is recognised, after the prefix of the block -> shape, in which None is any
            size. An empty shape is any shape.

    """

    library: str
    module: str
    reason: str
    keys: Mapping[str, tuple[int | None, ...]]

    def __str__(self) -> str:
        """Return the class with its library and the reason, for an error."""
        return f"{self.module} of {self.library}, which {self.reason}"


@dataclass(frozen=True, slots=True)
class Source:
    """A block of another library that computes the same as a variant of attzoo's, described without importing it.

    SOURCES of `sources.py` in a block's folder lists them. Timings are compared with the first.

    Args:
        library: display name of the library.
        module: the module that defines its class.
        class_name: the name of the class.
        variant: the variant of attzoo's block that computes the same from the same arrays.
        arguments: function from attzoo's spec to the arguments of the class by name. It may import the library.
        names: canonical name of every array -> its name in the state dict of the class.
        inputs: attzoo's names of the inputs in the order of the class; empty if the order is the same.
        resize: whether every input of the class must have the spatial size of x; inputs of other sizes are resized.
        ranks: the numbers of spatial axes that the class accepts.
        in_resnets: whether the library's ResNets have the block at the end of their residual branches.
        read: function from the shapes of the class's arrays, by canonical name, to the arguments of attzoo's block that
            they determine. The channels may be missing.
        choices: arguments of attzoo's block that no array determines, as mappings to try. The first has the defaults of
            the class.

    """

    library: str
    module: str
    class_name: str
    variant: str
    arguments: Callable[[Any], Mapping[str, Any]]
    names: Mapping[str, str]
    inputs: tuple[str, ...] = ()
    resize: bool = False
    ranks: tuple[int, ...] = (2,)
    in_resnets: bool = False
    read: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, Any]] = dict
    choices: tuple[Mapping[str, Any], ...] = ({},)

    @property
    def package(self) -> str:
        """The import name of the library."""
        return self.module.partition(".")[0]
