"""The words every spec is written in: weights and their starts, checks of arguments and inputs, variants.

No framework and no arithmetic on arrays here; the arithmetic is `attzoo.ops`.
"""

from __future__ import annotations

import operator
import re
import sys
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


# ---- weights and their starts ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weight:
    """One array of a block: its canonical shape, where it starts, and whether training moves it by gradients.

    start: "uniform" on [-scale, scale), "normal" with standard deviation scale, both around `center`;
    "constant" is `center` itself; "orthogonal" is scale times a matrix (shape[0], rest) of orthonormal rows or columns.
    """

    shape: tuple[int, ...]
    start: Literal["uniform", "normal", "constant", "orthogonal"]
    scale: float = 0.0
    center: float = 0.0
    trainable: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def fan_in_uniform(name: str, shape: tuple[int, ...], *, bias: bool) -> dict[str, Weight]:
    """`name`.weight and .bias of a linear map, uniform on +-fan_in^-1/2: the default of torch.nn.Linear and ConvNd."""
    bound = prod(shape[1:]) ** -0.5
    weights = {f"{name}.weight": Weight(shape, "uniform", bound)}
    return weights | ({f"{name}.bias": Weight(shape[:1], "uniform", bound)} if bias else {})


def kaiming_normal(name: str, shape: tuple[int, ...], *, bias: bool) -> dict[str, Weight]:
    """`name`.weight from normal(0, (2 / fan_in)^1/2), .bias uniform on +-fan_in^-1/2 (He et al. 2015, eq. 10)."""
    weights = fan_in_uniform(name, shape, bias=bias)
    return weights | {f"{name}.weight": Weight(shape, "normal", (2 / prod(shape[1:])) ** 0.5)}


def batch_norm(name: str, channels: int, scale: float = 0.0) -> dict[str, Weight]:
    """The four arrays of a batch norm: weight (normal(1, scale)), bias, and running mean and variance."""
    return {
        f"{name}.weight": Weight((channels,), "normal", scale, 1.0) if scale else Weight((channels,), "constant", 0, 1),
        f"{name}.bias": Weight((channels,), "constant"),
        f"{name}.mean": Weight((channels,), "constant", trainable=False),
        f"{name}.var": Weight((channels,), "constant", center=1.0, trainable=False),
    }


def prefixed(prefix: str, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights of a part, named from the whole: "conv.weight" -> "prefix.conv.weight"."""
    return {f"{prefix}.{name}": weight for name, weight in weights.items()}


def part(prefix: str, entries: Mapping[str, T]) -> dict[str, T]:
    """Return the entries of one part, arrays or shapes, under the part's own names: the reverse of `prefixed`."""
    return {name.removeprefix(f"{prefix}."): a for name, a in entries.items() if name.startswith(f"{prefix}.")}


# ---- a spec, and a named variant of it --------------------------------------------------------------


@runtime_checkable
class AnySpec(Protocol):
    """What the rest of attzoo asks of the spec of a block or of a whole network: what it takes to make and carry one.

    A spec is a frozen dataclass whose fields are the arguments. Blocks take one input or more, so the protocol leaves
    open how many.
    """

    @property
    def inputs(self) -> tuple[int, ...]:
        """Channels of each input."""

    @property
    def weights(self) -> dict[str, Weight]:
        """Every array, by canonical name."""

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this very block or network, every None resolved."""

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Called with (*shapes, channels_last=False): raise ValueError unless these are its inputs' shapes."""

    def macs(self, *args: Any, **kwargs: Any) -> int:
        """Called with (*shapes): multiply-adds of the linear maps for inputs of these shapes, channels first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """Called with (*inputs, weights=..., training=False): what it computes, in the dtype of its inputs.

        In training, running statistics in `weights` move.
        """


@runtime_checkable
class Spec(AnySpec, Protocol):
    """A block's spec: its output has its first input's shape."""

    @property
    def channels(self) -> int:
        """C, channels of the first input and of the output."""

    def attention(self, *args: Any, **kwargs: Any) -> Array:
        """Called with (*inputs, weights=..., training=False): the coefficients alone, before they multiply."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A published choice of arguments.

    source: where it is published. arguments: name -> value. rules: name -> function of the spec that the other
    arguments give, for a value that follows from them (a width rounded in that publication's way).
    """

    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """A small block for tests, tables and documentation.

    arguments: of its spec, `channels` among them. shapes: of each input, (N, C, *S), channels first.
    """

    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Another library's block that computes what a variant of ours computes, described without importing that library.

    A block lists its sources in SOURCES of `sources.py` in its folder. The first is the reference that timings compare
    with.

    Args:
        library: the library's name, as it writes itself.
        module: the module that holds its class.
        class_name: the class.
        variant: the variant of our block that computes the same from the same arrays.
        arguments: function of our spec that returns the arguments of the class by name. It may import the library.
        names: our canonical name of every array -> its name in the state dict of the class.
        inputs: our names of the inputs, in the order in which the class takes them; empty for our own order.
        resize: whether the class takes inputs of x's spatial size alone, so that others must be resized before.
        ranks: the numbers of spatial axes that the class takes.
        in_resnets: whether the library's ResNets take the block at the end of their residual branches.
        read: function of the shapes of the class's arrays, by our names, that returns the arguments of our block which
            they tell. The channels may be missing.
        choices: arguments of our block that no array tells, each as the class may have been made; the first is its
            default.

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
        """The name under which the library is installed and imported."""
        return self.module.partition(".")[0]


def channels_of(name: str) -> Any:
    """A required field of a spec: the number of channels of input `name`, which has no default."""
    return field(metadata={"channels_of": name})


def make_divisible(value: float, divisor: int = 8, round_limit: float = 0.9) -> int:
    """The multiple of divisor nearest to value, ties up, at least divisor; one more if below round_limit * value.

    Source: the rule of MobileNet's reference code, as in timm 1.0.31, timm/layers/helpers.py.

    >>> [make_divisible(c / 16, 8, 0.0) for c in (64, 200, 512)], [make_divisible(c / 4) for c in (24, 40, 72)]
    ([8, 16, 32], [8, 16, 24])
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded


def contiguous(array: Any) -> NDArray[Any]:
    """A copy in C order, whatever the layout of `array` in memory: what every array is when it leaves the library.

    >>> contiguous(np.zeros((2, 3)).T[::-1]).strides
    (16, 8)
    """
    return np.array(array, order="C")


# ---- rules, and what they give -----------------------------------------------------------------------


def rule_for(name: str) -> Any:
    """A field of a spec that says how argument `name` follows where that is None; its own None is settled then.

    Beside an explicit `name` it would change nothing: `refuse_idle_rules` refuses it there, `arguments` leaves it out.
    """
    return field(default=None, compare=False, metadata={"rule_for": name})


def refuse_idle_rules(spec: Any) -> None:
    """Raise ValueError where a rule is given beside what it would give; only for __post_init__, first."""
    for each in fields(spec):
        name, value = each.metadata.get("rule_for"), getattr(spec, each.name)
        if name and value is not None and getattr(spec, name) is not None:
            given = f"{each.name}={value!r} beside {name}={getattr(spec, name)!r}"
            raise ValueError(f"{each.name} says how {name} follows where that is not given, got {given}: give one")


def arguments(spec: Any) -> dict[str, Any]:
    """A spec's fields by name, less rules, whose results are among them: what rebuilds it."""
    return {each.name: getattr(spec, each.name) for each in fields(spec) if "rule_for" not in each.metadata}


def upgraded(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a spec that this version or an older one has written, as they are given now.

    A spec that has options of other specs among its own says itself what becomes of them, in `upgraded`.
    """
    own = getattr(cls, "upgraded", None)
    return without_idle_rules(cls, own(config) if own else config)


def without_idle_rules(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments less rules beside what they give, which older versions wrote down both."""
    follows = {each.name: each.metadata["rule_for"] for each in fields(cls) if "rule_for" in each.metadata}
    idle = [name for name, argument in follows.items() if config.get(argument) is not None]
    return {name: value for name, value in config.items() if name not in idle}


# ---- checks ----------------------------------------------------------------------------------------
# isinstance takes tuples here: torch.compile of 2.6 traces no union of types


def integer(name: str, value: Any, minimum: int = 1) -> int:
    """`value` as an int >= minimum; bool and float are refused, integers of NumPy taken."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if number < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {shown(number)}")
    return number


def odd(name: str, value: Any) -> int:
    """`value` as an odd int >= 1."""
    number = integer(name, value)
    if number % 2 == 0:
        raise ValueError(f"{name} must be odd, got {number}")
    return number


def number(name: str, value: Any) -> float:
    """`value` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {shown(value)}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def choice(name: str, value: Any, known: Sequence[Any]) -> Any:
    """The one of `known` that is `value`: an int of Python for an integer of NumPy; True and 1.0 are no 1."""
    plain = value
    if not isinstance(value, (bool, np.bool_)):
        with suppress(TypeError):
            plain = operator.index(value)
    for each in known:
        if isinstance(plain, type(each)) and isinstance(plain, bool) == isinstance(each, bool) and each == plain:
            return each
    got = shown(value) + nearest(value, known)
    raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {got}")


def set_fields(spec: Any, **values: Any) -> None:
    """Give fields of a frozen spec their checked values; only for __post_init__."""
    for name, value in values.items():
        object.__setattr__(spec, name, value)


def check_shape(
    shape: Shape, channels: int, spatial_dims: int | None, channels_last: bool, least: Sequence[int] = ()
) -> None:
    """Raise ValueError unless shape is (N, C, *S), or (N, *S, C), with every spatial size >= `least` (1 by default).

    spatial_dims None takes one to three spatial axes. A size of None is not known yet and passes.
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
    """How to mend a shape whose channels are at the other end; nothing where they are not."""
    is_rank = len(shape) - 2 in ((spatial_dims,) if spatial_dims else (1, 2, 3))
    here, there = (-1, 1) if channels_last else (1, -1)
    if not is_rank or shape[there] != channels or shape[here] in (channels, None):
        return ""
    if channels_last:
        return ", which is channels first: set data_format='channels_first', or move axis 1 to the end"
    return ", which is channels last: move the last axis to position 1, as x.movedim(-1, 1) does in torch"


def _no_batch(shape: Shape, channels: int, spatial_dims: int | None, channels_last: bool) -> str:
    """How to mend the shape of a single sample; nothing where it is none."""
    is_rank = len(shape) - 1 in ((spatial_dims,) if spatial_dims else (1, 2, 3))
    if not is_rank or shape[-1 if channels_last else 0] != channels:
        return ""
    return ", which looks like one sample without the batch axis: add it, as x[None] does"


def brief(text: str, most: int = 400) -> str:
    """A text for an error, its middle left out where it is long.

    >>> brief("abcdefghijkl", 9)
    'abc...jkl'
    """
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[len(text) - half :]}"


def shown(value: Any) -> str:
    """A value as an error shows it, however long it is."""
    return brief(repr(value))


def require(name: str, version: str, floor: str) -> None:
    """Raise ImportError unless a framework's version is at least `floor`.

    >>> require("torch", "2.13.0+cpu", "2.6")
    """
    if older(version, floor):
        raise ImportError(f"attzoo needs {name} >= {floor}, got {version}")


def older(version: str, floor: str) -> bool:
    """Whether a version comes before another.

    >>> older("3.5.1", "3.6"), older("3.10.0", "3.6")
    (True, False)
    """
    have, least = (tuple(int(part) for part in re.findall(r"\d+", text)[:3]) for text in (version, floor))
    return have < least


def triton_first() -> None:
    """Load triton, where it is installed, unless TensorFlow is loaded already.

    TensorFlow 2.20 and 2.21 abort the process when triton is loaded after them (tensorflow#124205), so whatever may
    load TensorFlow calls this before.
    """
    if "tensorflow" not in sys.modules:
        with suppress(ImportError):
            import_module("triton")


def __getattr__(name: str) -> Any:
    return moved(__name__, name, {"accept": "attzoo.contract.check_shape", "settle": "attzoo.contract.set_fields"})
