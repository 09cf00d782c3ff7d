"""A test case: the arguments of a block, the shapes of its inputs, and their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from typing import Any

import numpy as np

from .. import portable, registry
from ..adapters import adapter
from ..contract import Array, Spec, Weight

Pick = Callable[[Sequence[Any]], Any]
CHANNELS = (4, 1, 2, 3, 8, 17, 33)   # below and above the reduction, prime, odd and even
SIZES = (4, 1, 2, 3, 5, 7)
FEW = 300   # values of the trainable weights of a small case: the contract `training` evaluates the spec for each
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Magnitude below which the error of a result is not relative, but eps times this magnitude. TensorFlow and JAX flush
# subnormal numbers to zero, except in float16: the error is then the smallest normal number.
UNDERFLOW = {"float64": 2.0**-1022 / EPS["float64"], "float32": 2.0**-126 / EPS["float32"],
             "float16": 2.0**-14, "bfloat16": 2.0**-126 / EPS["bfloat16"]}   # fmt: skip


@dataclass(frozen=True, eq=False)   # compared by identity, so that results can be cached by case
class Case:
    """A test case, from which inputs, weights and blocks are made reproducibly.

    name: name of the block in the registry. channels, options: its arguments. shapes: shape of each input, channels
    first. dtype: name of the dtype of the block and the inputs. channels_last: whether the data format in Keras is
    channels last. scale: standard deviation of the inputs. seed: seed of all random numbers. spec: the block's spec.
    """

    name: str
    channels: int
    options: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "float64"
    channels_last: bool = True
    scale: float = 1.0
    seed: int = 0
    spec: Spec = field(init=False, repr=False)

    def __post_init__(self) -> None:
        spec = registry.get(self.name, backend="numpy")(self.channels, **self.options)   # type: ignore[call-arg]
        object.__setattr__(self, "spec", spec)

    def rng(self, stream: int) -> np.random.Generator:
        """Return a random generator that depends on the seed of the case and on `stream`, the number of its purpose."""
        return np.random.default_rng((self.seed, stream))

    def inputs(self) -> list[Array]:
        """Return the inputs: normal numbers, rounded to the dtype of the case, as float64 arrays (N, C, *S)."""
        rng = self.rng(0)
        return [rounded(self.scale * rng.normal(size=shape), self.dtype) for shape in self.shapes]

    def weights(self) -> dict[str, Array]:
        """Return random weights by name, different from the initial ones, rounded to the dtype, as float64 arrays."""
        rng = self.rng(1)
        return {name: rounded(_random_array(weight, rng), self.dtype) for name, weight in self.spec.weights.items()}

    def cotangent(self) -> Array:
        """Return the array that multiplies the output in the loss, sum(output * cotangent)."""
        return rounded(self.rng(2).normal(size=self.shapes[0]), self.dtype)

    def block(self, backend: str) -> Any:
        """Return the block in `backend`, with the weights of the case."""
        config = self.spec.config()
        if backend == "keras":
            config["data_format"] = "channels_last" if self.channels_last else "channels_first"
        dtype = adapter(backend).storage(self.dtype)
        block = adapter(backend).make(registry.get(self.name, backend=backend), config, dtype)
        kind = "float32" if dtype == "bfloat16" else dtype
        portable.load_weights(block, {name: array.astype(kind) for name, array in self.weights().items()})
        return block


def plainest(values: Sequence[Any]) -> Any:
    """Return the first value of a sequence, which must be the simplest."""
    return values[0]


def at_random(rng: np.random.Generator) -> Pick:
    """Return a function that returns a random item of a sequence."""
    return lambda values: values[int(rng.integers(len(values)))]


def draw(name: str, pick: Pick, *, dtype: str = "float64", small: bool = False) -> Case:
    """Return a case of a block, with options from the CHOICES of the module of its spec.

    Args:
        name: name of the block in the registry.
        pick: chooses an item from a sequence whose first item is the simplest.
        dtype: name of the dtype of the case.
        small: for slow checks: few channels, a batch of at least 2 samples, and fewer spatial axes where the
            trainable weights of the block would otherwise have more than FEW values.

    """
    cls = registry.get(name, backend="numpy")
    channels = pick(CHANNELS[:4] if small else CHANNELS)
    values_by_option = {option: _few(option, values) if small else values for option, values in choices(cls).items()}
    drawn_options = {option: pick(values) for option, values in values_by_option.items()}
    channels, options = accepted(cls, channels, drawn_options)
    spec = cls(channels, **options)   # type: ignore[call-arg]
    while small and _number_of_parameters(spec) > FEW and options.get("spatial_dims", 1) > 1:
        options["spatial_dims"] -= 1
        spec = cls(channels, **options)   # type: ignore[call-arg]
    rank = getattr(spec, "spatial_dims", None) or pick((2, 1, 3))
    batch = pick((2, 3) if small else (2, 1, 3))
    shapes = tuple((batch, c, *(pick((3, 2) if small else SIZES) for _ in range(rank))) for c in spec.inputs)
    return Case(name, channels, options, fitted(spec, shapes), dtype, pick((True, False)), seed=pick(range(1000)))


def _number_of_parameters(spec: Spec) -> int:
    """Return the number of trainable values in the weights of a spec."""
    return sum(int(np.prod(weight.shape)) for weight in spec.weights.values() if weight.trainable)


def _few(option: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return the values of an option that keep a block small: the last two kernel sizes, else the first two.

    All values of spatial_dims are returned.
    """
    return values[-2:] if option == "kernel_size" else values if option == "spatial_dims" else values[:2]


def choices(cls: type[Spec]) -> Mapping[str, Sequence[Any]]:
    """Return CHOICES of the module of a spec: values to test by argument, without channels; the simplest is first.

    Raises:
        ValueError: if the module has no CHOICES.
    """
    module = import_module(cls.__module__)
    if not hasattr(module, "CHOICES"):
        expected = f"expected CHOICES in {module.__name__}, the values of every argument with which to check the block"
        raise ValueError(f"{expected}, got none: docs/adding-a-block.md has an example")
    return dict(module.CHOICES)


def allowed(cls: type[Spec], channels: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` without each option for which the spec, with the options before it, raises ValueError."""
    valid_options = {
        field.name: options.pop(field.name)
        for field in fields(cls)   # type: ignore[arg-type]
        if field.name in options and field.default is MISSING
    }
    for option, value in options.items():
        try:
            cls(channels, **valid_options, **{option: value})   # type: ignore[call-arg]
        except ValueError:
            continue
        valid_options[option] = value
    return valid_options


def accepted(cls: type[Spec], channels: int, options: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the least number of channels >= `channels` that the spec accepts, and its `allowed` options there.

    Raises the error of the spec if it accepts none up to 1000 larger, which is no multiple of its groups, for example.
    """
    for count in range(channels, channels + 1001):
        valid = allowed(cls, count, dict(options))
        try:
            cls(count, **valid)   # type: ignore[call-arg]
        except ValueError as err:
            error = err
            continue
        return count, valid
    raise error


def fitted(spec: Spec, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes, enlarged along every spatial axis until the spec accepts them.

    Raises ValueError if it accepts none that is up to 7 pixels larger.
    """
    for added_pixels in range(8):
        larger_shapes = tuple((*shape[:2], *(size + added_pixels for size in shape[2:])) for shape in shapes)
        try:
            spec.check_inputs(*larger_shapes)
        except ValueError:
            continue
        return larger_shapes
    fix = "accept one of these shapes in check_inputs"
    raise ValueError(f"expected {spec} to accept inputs of a shape up to {larger_shapes}, got errors for all: {fix}")


def rounded(array: Array, dtype: str) -> Array:
    """Return a float64 array whose values are rounded to the nearest of a dtype, ties to even."""
    if dtype != "bfloat16":
        return array.astype(dtype).astype(np.float64)
    bits = array.astype(np.float32).view(np.uint32)
    bits += 0x7FFF + (bits >> 16 & 1)
    return (bits & 0xFFFF0000).view(np.float32).astype(np.float64)


def _random_array(weight: Weight, rng: np.random.Generator) -> Array:
    """Return random values for a weight: from 0.5 to 2 for scales and variances, else normal numbers."""
    if weight.center == 1:   # gains and variances
        return rng.uniform(0.5, 2.0, size=weight.shape)
    fan_in = np.prod(weight.shape[1:]) if len(weight.shape) > 1 else 1
    return rng.normal(size=weight.shape) * (1.5 / fan_in**0.5)
