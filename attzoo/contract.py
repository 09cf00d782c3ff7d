"""Building blocks of specs: descriptions of weights, checks of arguments and inputs, variants and sources.

This module imports no framework and computes nothing on arrays; `attzoo.ops` does.
"""

from __future__ import annotations

import operator
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from importlib import import_module
from math import prod
from typing import Any, Final, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .hints import NamedArguments as NamedArguments
from .hints import nearest
from .moved import moved

T = TypeVar("T")
Array = NDArray[np.floating]
Shape = Sequence[int | None]
GATES: Final = ("sigmoid", "hard_sigmoid")
ACTIVATIONS: Final = ("relu", "silu", "hard_swish")   # of hidden units
STARTS: Final = ("default", "identity")   # of a block that is put into a network


# ---- weights and their initialization ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weight:
    """Shape and initialization of one array of a block.

    Attributes:
        shape: canonical shape.
        initialization: "uniform" on [center - scale, center + scale), "normal" with mean `center` and standard
            deviation `scale`, "constant" with value `center`, or "orthogonal": `scale` times a matrix of shape
            (shape[0], product of the other sizes) with orthonormal rows or columns.
        scale: see `initialization`.
        center: see `initialization`.
        trainable: whether training changes the array by gradients.

    """

    shape: tuple[int, ...]
    initialization: Literal["uniform", "normal", "constant", "orthogonal"]
    scale: float = 0.0
    center: float = 0.0
    trainable: bool = True

    @property
    def start(self) -> str:
        """Deprecated name of `initialization`. Reading it warns with DeprecationWarning."""
        warnings.warn(
            "Weight.start is now Weight.initialization; the next release has no Weight.start",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.initialization

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def fan_in_uniform(name: str, shape: tuple[int, ...], *, bias: bool) -> dict[str, Weight]:
    """Return the descriptions of "name.weight" and, with `bias`, "name.bias" of a linear map or convolution.

    Both are uniform on +-fan_in^-1/2, as in torch.nn.Linear and ConvNd. `shape`, that of the weight, begins with the
    number of outputs.
    """
    bound = prod(shape[1:]) ** -0.5
    weights = {f"{name}.weight": Weight(shape, "uniform", bound)}
    return weights | ({f"{name}.bias": Weight(shape[:1], "uniform", bound)} if bias else {})


def kaiming_normal(name: str, shape: tuple[int, ...], *, bias: bool) -> dict[str, Weight]:
    """Return `fan_in_uniform` with the weight from normal(0, (2 / fan_in)^1/2) instead (He et al. 2015, eq. 10)."""
    weights = fan_in_uniform(name, shape, bias=bias)
    return weights | {f"{name}.weight": Weight(shape, "normal", (2 / prod(shape[1:])) ** 0.5)}


def batch_norm(name: str, channels: int, scale: float = 0.0) -> dict[str, Weight]:
    """Return the descriptions of a batch norm's arrays: "name.weight", "name.bias", "name.mean" and "name.var".

    The weight is from normal(1, scale); `scale` is 0 for all ones. The last two are the running statistics.
    """
    return {
        f"{name}.weight": Weight((channels,), "normal", scale, 1.0) if scale else Weight((channels,), "constant", 0, 1),
        f"{name}.bias": Weight((channels,), "constant"),
        f"{name}.mean": Weight((channels,), "constant", trainable=False),
        f"{name}.var": Weight((channels,), "constant", center=1.0, trainable=False),
    }


def prefixed(prefix: str, entries: Mapping[str, T]) -> dict[str, T]:
    """Return entries with a prefix before each name: "conv.weight" -> "prefix.conv.weight"."""
    return {f"{prefix}.{name}": entry for name, entry in entries.items()}


def without_prefix(prefix: str, entries: Mapping[str, T]) -> dict[str, T]:
    """Return the entries whose names have the prefix, without it: "prefix.conv.weight" -> "conv.weight"."""
    return {name.removeprefix(f"{prefix}."): a for name, a in entries.items() if name.startswith(f"{prefix}.")}


# ---- specs, variants, examples, sources --------------------------------------------------------------


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
        """Raise ValueError if the block does not take inputs of these shapes. Only check.

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

    def attention(self, *args: Any, **kwargs: Any) -> Array:
        """Compute the coefficients that are combined with x. Called as the spec itself."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A published choice of arguments.

    Attributes:
        source: where it is published.
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
    """How a state dict of another library stores the arrays of a block.

    A block lists those that it can read and write in KEYS of `sources.py` in its folder, by the name of the source.

    Args:
        names: canonical name of every array -> its key in the state dict.
        axes: number of axes of size 1 after the matrices of linear maps, which convolutions of size 1 have; None if
            it is the block's number of spatial axes.
        max_first: names of convolutions whose first input plane is the maximum; it is the mean in attzoo.
        channels_last: whether kernels are those of Keras, (*k, I, O), and keys are paths of variables, which begin with
            the name of a layer. The names of the layers of a block may have a common prefix.

    """

    names: Mapping[str, str]
    axes: int | None = 0
    max_first: tuple[str, ...] = ()
    channels_last: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Another library's block that computes what a variant of ours computes, described without importing that library.

    A block lists its sources in SOURCES of `sources.py` in its folder. The first is the reference that timings compare
    with.

    Args:
        library: display name of the library.
        module: the module that defines its class.
        class_name: the name of the class.
        variant: the variant of our block that computes the same from the same arrays.
        arguments: function that returns the arguments of the class by name from our spec. It may import the library.
        names: canonical name of every array -> its name in the state dict of the class.
        inputs: our names of the inputs in the order of the class; empty if the order is the same.
        resize: whether every input of the class must have x's spatial size, so that other sizes are resized before.
        ranks: the numbers of spatial axes that the class accepts.
        in_resnets: whether the library's ResNets have the block at the end of their residual branches.
        read: function that returns those arguments of our block that the shapes of the class's arrays determine, from
            these shapes by our names. The channels may be missing.
        choices: arguments of our block that no array determines, one mapping for each way to create the class. The
            first is its default.

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


def channels_of(name: str) -> Any:
    """Return a required dataclass field of a spec that holds the number of channels of input `name`."""
    return field(metadata={"channels_of": name})


def make_divisible(value: float, divisor: int = 8, round_limit: float = 0.9) -> int:
    """Return the nearest multiple of divisor, ties up, at least divisor, plus divisor if below round_limit * value.

    Source: MobileNet's reference code, as in timm 1.0.31, timm/layers/helpers.py.

    >>> [make_divisible(c / 16, 8, 0.0) for c in (64, 200, 512)], [make_divisible(c / 4) for c in (24, 40, 72)]
    ([8, 16, 32], [8, 16, 24])
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded


def contiguous(array: Any) -> NDArray[Any]:
    """Return a copy in C order. Every array that the library returns is in C order.

    >>> contiguous(np.zeros((2, 3)).T[::-1]).strides
    (16, 8)
    """
    return np.array(array, order="C")


# ---- arguments that derive another argument ---------------------------------------------------------


def rule_for(name: str) -> Any:
    """Return a dataclass field, None by default, for an argument that derives argument `name` while that is None.

    Such an argument is called a rule: `reduction` is a rule for `reduced_channels`, for example. If `name` is given
    too, the rule has no effect, and `refuse_idle_rules` raises an error. `arguments` leaves rules out.
    """
    return field(default=None, compare=False, metadata={"rule_for": name})


def refuse_idle_rules(spec: Any) -> None:
    """Raise ValueError if a rule and the argument that it derives are both given. Call this first in __post_init__."""
    for rule in fields(spec):
        name, value = rule.metadata.get("rule_for"), getattr(spec, rule.name)
        if name and value is not None and getattr(spec, name) is not None:
            got = f"{rule.name}={value!r} and {name}={getattr(spec, name)!r}"
            raise ValueError(f"expected {rule.name} or {name}, not both, got {got}: leave one out")


def arguments(spec: Any) -> dict[str, Any]:
    """Return the fields of a spec as name -> value, without rules. They create an equal spec."""
    return {field.name: getattr(spec, field.name) for field in fields(spec) if "rule_for" not in field.metadata}


def upgraded(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of spec class `cls` from a config that this or an older version wrote.

    `cls` may convert the config itself first, in a class method `upgraded(config)`, which returns a mapping.
    """
    convert = getattr(cls, "upgraded", None)
    return without_idle_rules(cls, convert(config) if convert else config)


def without_idle_rules(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` without the rules whose derived argument it gives too. Older versions wrote both."""
    derived = {field.name: field.metadata["rule_for"] for field in fields(cls) if "rule_for" in field.metadata}
    idle = [name for name, argument in derived.items() if config.get(argument) is not None]
    return {name: value for name, value in config.items() if name not in idle}


# ---- checks ----------------------------------------------------------------------------------------
# isinstance gets tuples here, because torch.compile of 2.6 cannot trace a union of types


def integer(name: str, value: Any, minimum: int = 1) -> int:
    """Return an integer >= minimum as int.

    Raise TypeError for bool and types that are not integers, ValueError for smaller integers. `name` is the argument's.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {short_repr(value)}")
    if number < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {short_repr(number)}")
    return number


def odd(name: str, value: Any) -> int:
    """Return an odd integer >= 1 as int. Raise the errors of `integer`, and ValueError if `value` is even."""
    number = integer(name, value)
    if number % 2 == 0:
        raise ValueError(f"{name} must be odd, got {number}")
    return number


def number(name: str, value: Any) -> float:
    """Return a finite number as float. Raise TypeError for bool and other types, ValueError for nan and infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {short_repr(value)}")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {short_repr(value)}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """Return True or False as bool. Raise TypeError for other types."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {short_repr(value)}")
    return bool(value)


def choice(name: str, value: Any, known: Sequence[Any]) -> Any:
    """Return the element of `known` that equals `value`. Raise ValueError, with the nearest one, if there is none.

    NumPy integers equal ints. True and 1.0 do not equal 1.
    """
    plain = value
    if not isinstance(value, (bool, np.bool_)):
        with suppress(TypeError):
            plain = operator.index(value)
    for option in known:
        if isinstance(plain, type(option)) and isinstance(plain, bool) == isinstance(option, bool) and option == plain:
            return option
    got = short_repr(value) + nearest(value, known)
    raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {got}")


def set_fields(spec: Any, **values: Any) -> None:
    """Set fields of a frozen spec in place to `values`, which are checked. Call this in __post_init__ only."""
    for name, value in values.items():
        object.__setattr__(spec, name, value)


def check_shape(
    shape: Shape, channels: int, spatial_dims: int | None, channels_last: bool, least: Sequence[int] = ()
) -> None:
    """Raise ValueError unless shape is (N, C, *S), or (N, *S, C) with channels_last. Only check.

    Args:
        shape: the shape. None stands for a size that is not known yet, and is accepted.
        channels: C.
        spatial_dims: the number of spatial axes; None accepts 1, 2 and 3.
        channels_last: whether C is the last axis.
        least: the smallest size of each spatial axis, 1 by default.

    """
    count = len(shape) - 2
    space = tuple(shape)[1:-1] if channels_last else tuple(shape)[2:]
    if (
        (count == spatial_dims if spatial_dims else 1 <= count <= 3)
        and shape[-1 if channels_last else 1] in (channels, None)
        and all(size is None or size >= low for size, low in zip(space, least or (1,) * count, strict=True))
    ):
        return
    axes = f"{spatial_dims} spatial axes" if spatial_dims else "1 to 3 spatial axes"
    order = f"(N, *S, {channels})" if channels_last else f"(N, {channels}, *S)"
    sizes = f"at least {tuple(least)}" if any(low > 1 for low in least) else "at least 1 each"
    hint = _other_layout(shape, channels, spatial_dims, channels_last)
    hint = hint or _no_batch(shape, channels, spatial_dims, channels_last)
    raise ValueError(f"expected {order} with {axes} of {sizes}, got {tuple(shape)}{hint}")


def _other_layout(shape: Shape, channels: int, spatial_dims: int | None, channels_last: bool) -> str:
    """Return the hint for a shape that is right in the other layout, "" for any other shape."""
    is_rank = len(shape) - 2 in ((spatial_dims,) if spatial_dims else (1, 2, 3))
    axis, other_axis = (-1, 1) if channels_last else (1, -1)
    if not is_rank or shape[other_axis] != channels or shape[axis] in (channels, None):
        return ""
    if channels_last:
        return ", which is channels first: set data_format='channels_first', or move axis 1 to the end"
    return ", which is channels last: move the last axis to position 1, as x.movedim(-1, 1) does in torch"


def _no_batch(shape: Shape, channels: int, spatial_dims: int | None, channels_last: bool) -> str:
    """Return the hint for the shape of one sample without a batch axis, "" for any other shape."""
    is_rank = len(shape) - 1 in ((spatial_dims,) if spatial_dims else (1, 2, 3))
    if not is_rank or shape[-1 if channels_last else 0] != channels:
        return ""
    return ", which looks like one sample without the batch axis: add it, as x[None] does"


def is_out_of_memory(err: Exception) -> bool:
    """Whether NumPy, torch, TensorFlow or JAX raised `err` because the machine or a device has no memory left."""
    kinds, words = ("OutOfMemoryError", "ResourceExhaustedError"), ("DefaultCPUAllocator", "RESOURCE_EXHAUSTED")
    return isinstance(err, MemoryError) or type(err).__name__ in kinds or any(word in str(err) for word in words)


def shorten(text: str, max_length: int = 400) -> str:
    """Return a text shortened to `max_length` characters for an error message, by leaving out its middle.

    >>> shorten("abcdefghijkl", 9)
    'abc...jkl'
    """
    half = (max_length - 3) // 2
    return text if len(text) <= max_length else f"{text[:half]}...{text[len(text) - half :]}"


def short_repr(value: Any) -> str:
    """Return the repr of a value, shortened for an error message."""
    return shorten(repr(value))


def require(name: str, version: str, floor: str) -> None:
    """Raise ImportError if the installed `version` of framework `name` is older than `floor`.

    >>> require("torch", "2.13.0+cpu", "2.6")
    """
    if is_older(version, floor):
        raise ImportError(f"attzoo needs {name} >= {floor}, got {version}")


def is_older(version: str, floor: str) -> bool:
    """Whether `version` is older than `floor`.

    >>> is_older("3.5.1", "3.6"), is_older("3.10.0", "3.6")
    (True, False)
    """
    numbers, floor_numbers = (tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (version, floor))
    return numbers < floor_numbers


def triton_first() -> None:
    """Import triton, if it is installed and TensorFlow is not loaded yet.

    TensorFlow 2.20 and 2.21 abort the process when triton is loaded after them (tensorflow#124205). Call this before
    anything that may import TensorFlow.
    """
    if "tensorflow" not in sys.modules:
        with suppress(ImportError):
            import_module("triton")


def __getattr__(name: str) -> Any:
    """Return an attribute of this module by its deprecated name, with a DeprecationWarning."""
    return moved(__name__, name, {"accept": "attzoo.contract.check_shape", "settle": "attzoo.contract.set_fields"})
