"""The base class of block specs: inputs, arguments, shape checks, and how coefficients are applied to the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import add, mul
from typing import Any, ClassVar, Final, Literal

from .. import contract
from ..contract import Array, Coefficients, Shape
from ..ops import numpy as ops

Combination = Literal[
    "multiply", "add", "multiply_add", "one_plus", "sum_of_products", "mean_of_products", "max_of_products",
    "one_plus_sigmoid_of_sum", "one_plus_sigmoid_of_product", "own",
]   # fmt: skip


def _fold(operation: Callable[[Any, Any], Any], arrays: Sequence[Any]) -> Any:
    """Return operation(operation(a, b), c) and so on for arrays a, b, c, ..."""
    result = arrays[0]
    for array in arrays[1:]:
        result = operation(result, array)
    return result


# Functions of the input x, the arrays of coefficients a, b, ..., and the framework's module in attzoo.ops. They use
# only operators and functions of that module, so that they work in every framework.
COMBINATIONS: Final[Mapping[Combination, Callable[[Any, Sequence[Any], Any], Any]]] = {
    "multiply": lambda x, arrays, ops: _fold(mul, (x, *arrays)),
    "add": lambda x, arrays, ops: _fold(add, (x, *arrays)),
    "multiply_add": lambda x, arrays, ops: x * arrays[0] + arrays[1],
    "one_plus": lambda x, arrays, ops: x * (1 + _fold(mul, arrays)),
    "sum_of_products": lambda x, arrays, ops: _fold(add, [x * array for array in arrays]),
    "mean_of_products": lambda x, arrays, ops: x * (_fold(add, arrays) / len(arrays)),
    "max_of_products": lambda x, arrays, ops: _fold(ops.maximum, [x * array for array in arrays]),
    "one_plus_sigmoid_of_sum": lambda x, arrays, ops: x * (1 + ops.sigmoid(_fold(add, arrays))),
    "one_plus_sigmoid_of_product": lambda x, arrays, ops: x * (1 + ops.sigmoid(_fold(mul, arrays))),
}


class BlockSpec(contract.NamedArguments):
    """The base class of a block's spec, which is a frozen dataclass whose fields are the block's arguments.

    A subclass has a field `channels`, a field `spatial_dims` if an argument fixes the number of spatial axes, and
    `weights`, `macs` and `attention`. A block with more inputs than x overrides `inputs` and `check_inputs` too.

    `attention` returns one array of coefficients a, or several by name, {"channel": a, "position": b}. Each broadcasts
    to x.

    combination: how the coefficients are applied to x; a property if an argument selects it. "multiply" is x * a * b,
    "add" is x + a + b, "multiply_add" is x * a + b, "one_plus" is x * (1 + a * b), "sum_of_products" is x * a + x * b,
    "mean_of_products" is half of that, "max_of_products" is max(x * a, x * b), "one_plus_sigmoid_of_sum" is
    x * (1 + sigmoid(a + b)), and "one_plus_sigmoid_of_product" is x * (1 + sigmoid(a * b)). A block with another rule
    has "own" here and overrides `combine`.
    """

    combination: ClassVar[Combination] = "multiply"
    channels: int
    attention: Callable[..., Coefficients]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Return the number of channels of each input."""
        return (self.channels,)

    def config(self) -> dict[str, Any]:
        """Return the arguments by name that create an equal spec, with every None replaced by its value."""
        return contract.arguments(self)

    def check_inputs(self, x: Shape, *, channels_last: bool = False) -> None:
        """Raise ValueError unless the shape x is (N, C, *S), or (N, *S, C) with `channels_last`."""
        contract.check_shape(x, self.channels, getattr(self, "spatial_dims", None), channels_last)

    def operands(self, *inputs: Array, weights: Mapping[str, Array], training: bool = False) -> Any:
        """Return the first argument of `combine` for these inputs: the first input, unless a block overrides this."""
        return inputs[0]

    def combine(self, x: Any, coefficients: Any, ops: Any) -> Any:
        """Return x with the coefficients applied, for any framework and layout.

        Args:
            x: the input, or the result of `operands` if the block overrides it.
            coefficients: the result of `attention`, one array or several by name.
            ops: the module of the framework in attzoo.ops.

        """
        arrays = tuple(coefficients.values()) if isinstance(coefficients, dict) else (coefficients,)
        return COMBINATIONS[self.combination](x, arrays, ops)

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the output. `weights`: arrays by the names of `self.weights`.

        With training=True, running statistics in `weights` are updated in place.
        """
        y: Array = self.combine(x, self.attention(x, weights=weights, training=training), ops)
        return y
