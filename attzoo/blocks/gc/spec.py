"""The reference implementation of GC in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Final

from ... import contract
from ...contract import Array, Coefficients, Example, Weight, fan_in_uniform, layer_norm
from ...ops import numpy as ops
from ..bottleneck import HiddenWidth
from ..spec import Combination

# fusion -> names of the arrays of coefficients, and how they are applied to x
FUSIONS: Final[Mapping[str, tuple[tuple[str, ...], Combination]]] = {
    "add": (("shift",), "add"),
    "multiply": (("scale",), "multiply"),
    "both": (("scale", "shift"), "multiply_add"),
}
FEWEST: Final = 2   # hidden units
CHOICES: Final = {
    "reduction": (None, 1, 3),
    "reduced_channels": (None, 2, 5),
    "fusion": tuple(FUSIONS),
    "epsilon": (ops.EPSILON, 1e-2),
}
EXAMPLES: Final = {
    "": Example({"channels": 8, "reduced_channels": 3, "fusion": "both"}, ((2, 8, 6, 5),)),
    "add": Example({"channels": 8, "reduced_channels": 3}, ((2, 8, 6, 5),)),
}


@dataclass(frozen=True)
class GC(HiddenWidth):
    """channels: C >= 1, channels of the input.

    reduction: >= 1, dimensionless; there are max(2, C // reduction) hidden units; None means 16.
    reduced_channels: R >= 2, hidden units; None means the number of the rule above. Give only one of the two.
    fusion: how the context is applied to x: "add", "multiply" or "both".
    epsilon: > 0, added to the variance in the layer norm.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    min_width: ClassVar[int] = FEWEST
    least_width: ClassVar[int] = FEWEST
    fusion: str = "add"
    epsilon: float = ops.EPSILON

    def __post_init__(self) -> None:
        super().__post_init__()
        contract.set_fields(
            self,
            fusion=contract.choice("fusion", self.fusion, tuple(FUSIONS)),
            epsilon=contract.positive("epsilon", self.epsilon),
        )

    @property
    def terms(self) -> tuple[str, ...]:
        """Return the names of the arrays of coefficients, "scale" and "shift" or one of them."""
        return FUSIONS[self.fusion][0]

    @property
    def combination(self) -> Combination:   # type: ignore[override]
        """Return how the coefficients are applied to x."""
        return FUSIONS[self.fusion][1]

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        c, r = self.channels, self.width
        weights = {"score.weight": Weight((1, c), "normal", (2 / c) ** 0.5), "score.bias": Weight((1,), "constant")}
        for term in self.terms:
            weights |= fan_in_uniform(f"{term}_squeeze", (r, c), bias=True) | layer_norm(f"{term}_norm", r)
            weights |= {
                f"{term}_excite.weight": Weight((c, r), "constant"),
                f"{term}_excite.bias": Weight((c,), "constant"),
            }
        return weights

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the linear maps, for x of shape (N, C, *S)."""
        return x[0] * self.channels * (prod(x[2:]) + 2 * self.width * len(self.terms))

    def named(self, arrays: dict[str, Any]) -> Any:
        """Return arrays by the names of `terms` as coefficients of the block: the array itself if there is one."""
        return arrays if len(arrays) > 1 else arrays[self.terms[0]]

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Coefficients:
        """(N, C, *S) -> (N, C, 1..), or with fusion="both" scale and shift, (N, C, 1..) each."""
        self.check_inputs(x.shape)
        p = ops.position_softmax(ops.linear(x, weights, "score"))     # (N, 1, *S)
        s = ops.weighted_pool(x, p)                                   # (N, C)
        arrays = {}
        for term in self.terms:
            u = ops.linear(s, weights, f"{term}_squeeze")             # (N, R)
            h = ops.relu(ops.layer_norm(u, weights, f"{term}_norm", self.epsilon))
            z = ops.linear(h, weights, f"{term}_excite")              # (N, C)
            arrays[term] = ops.expand(ops.sigmoid(z) if term == "scale" else z, x)
        coefficients: Coefficients = self.named(arrays)
        return coefficients
