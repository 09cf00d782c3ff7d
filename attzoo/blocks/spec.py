"""The base class of block specs: inputs, arguments, shape checks, and how coefficients are applied to the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Literal

from .. import contract
from ..contract import Array, Shape

Combination = Literal["multiply", "add", "one_plus"]
# Functions of the input x and the coefficients a. They use operators only, so that they work in every framework.
COMBINATIONS: Final[Mapping[Combination, Callable[[Any, Any], Any]]] = {
    "multiply": lambda x, a: x * a,
    "add": lambda x, a: x + a,
    "one_plus": lambda x, a: x * (1 + a),
}


class BlockSpec(contract.NamedArguments):
    """The base class of a block's spec, which is a frozen dataclass whose fields are the block's arguments.

    A subclass has a field `channels`, a field `spatial_dims` if an argument fixes the number of spatial axes, and
    `weights`, `macs` and `attention`. A block with more inputs than x overrides `inputs` and `check_inputs` too.

    combination: how the coefficients a = attention(x) are applied to the input: "multiply" is x * a, "add" is x + a,
    and "one_plus" is x * (1 + a). A block with another rule overrides `combine`, using only operators such as * and +,
    because the implementations in all frameworks call it.
    """

    combination: ClassVar[Combination] = "multiply"
    channels: int
    attention: Callable[..., Array]

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

    def combine(self, x: Any, coefficients: Any) -> Any:
        """Return x with the coefficients applied, which broadcast to x; for any framework and layout."""
        return COMBINATIONS[self.combination](x, coefficients)

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the output. `weights`: arrays by the names of `self.weights`.

        With training=True, running statistics in `weights` are updated in place.
        """
        return self.combine(x, self.attention(x, weights=weights, training=training))   # type: ignore[no-any-return]
