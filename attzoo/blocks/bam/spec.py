"""The reference implementation of BAM in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from ... import contract
from ...contract import Array, Example, Weight, batch_norm, fan_in_uniform
from ...ops import numpy as ops
from .. import bottleneck
from ..bottleneck import HiddenWidth

KERNEL: Final = 3   # side of the dilated kernels, in pixels
HIDDEN: Final = ("squeeze", "reduce", "context1", "context2")   # layers with R outputs
NORMED: Final = {"hidden": HIDDEN, "output": ("excite", "score")}   # layers with a norm, by `norm_after`
COMBINATIONS: Final = ("one_plus_sigmoid_of_product", "one_plus_sigmoid_of_sum")
CHOICES: Final = {
    "reduction": bottleneck.CHOICES["reduction"],
    "reduced_channels": bottleneck.CHOICES["reduced_channels"],
    "dilation": (4, 1, 2),
    "combination": COMBINATIONS,
    "norm": (True, False),
    "norm_after": tuple(NORMED),
    "spatial_dims": (2, 1, 3),
}
EXAMPLES: Final = {
    "": Example({"channels": 8, "reduced_channels": 3, "dilation": 2}, ((3, 8, 6, 5),)),
    "1d": Example(
        {"channels": 4, "reduction": 2, "combination": COMBINATIONS[1], "norm_after": "output", "spatial_dims": 1},
        ((3, 4, 9),),
    ),
}


@dataclass(frozen=True)
class BAM(HiddenWidth):
    """channels: C >= 1, channels of the input.

    reduction: >= 1, dimensionless; the hidden layers have max(1, C // reduction) channels; None means 16.
    reduced_channels: R >= 1, channels of the hidden layers; None means the number of the rule above. Give only one of
        the two.
    dilation: >= 1, distance between neighbouring taps of the two 3 x 3 kernels, in pixels.
    combination: "one_plus_sigmoid_of_product", x * (1 + sigmoid(channel * position)), or "one_plus_sigmoid_of_sum",
        x * (1 + sigmoid(channel + position)).
    norm: whether there are batch norms.
    norm_after: "hidden" for a batch norm after each hidden layer, or "output" for one at the end of each branch.
    spatial_dims: 1, 2 or 3, spatial axes of the input.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    dilation: int = 4
    combination: str = "one_plus_sigmoid_of_product"   # type: ignore[assignment, misc]   # a field here
    norm: bool = True
    norm_after: str = "hidden"
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        contract.set_fields(
            self,
            dilation=contract.integer("dilation", self.dilation),
            combination=contract.choice("combination", self.combination, COMBINATIONS),
            norm=contract.flag("norm", self.norm),
            norm_after=contract.choice("norm_after", self.norm_after, tuple(NORMED)),
            spatial_dims=contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3)),
        )

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        c, r, kernel = self.channels, self.width, (KERNEL,) * self.spatial_dims
        shapes: dict[str, tuple[int, ...]] = {"squeeze": (r, c), "excite": (c, r), "reduce": (r, c)}
        shapes |= {"context1": (r, r, *kernel), "context2": (r, r, *kernel), "score": (1, r)}
        weights: dict[str, Weight] = {}
        for name, shape in shapes.items():
            weights |= fan_in_uniform(name, shape, bias=True)
            if self.norm and name in NORMED[self.norm_after]:
                weights |= batch_norm(f"{name}_norm", shape[0])
        return weights

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the linear maps and convolutions, for x of shape (N, C, *S)."""
        sizes = {name: self.weights[f"{name}.weight"].size for name in (*HIDDEN, "excite", "score")}
        vector = sizes.pop("squeeze") + sizes.pop("excite")   # once per sample; the others once per position
        return x[0] * (vector + prod(x[2:]) * sum(sizes.values()))

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> dict[str, Array]:
        """(N, C, *S) -> channel (N, C, 1..), position (N, 1, *S). Return the coefficients before the sigmoid."""
        self.check_inputs(x.shape)
        s = ops.avg_pool(x)                                                               # (N, C)
        u = ops.batch_norm(ops.linear(s, weights, "squeeze"), weights, "squeeze_norm", training)
        c = ops.batch_norm(ops.linear(ops.relu(u), weights, "excite"), weights, "excite_norm", training)
        h = ops.batch_norm(ops.linear(x, weights, "reduce"), weights, "reduce_norm", training)
        for name in ("context1", "context2"):
            h = ops.conv(ops.relu(h), weights, name, dilation=self.dilation)             # (N, R, *S)
            h = ops.batch_norm(h, weights, f"{name}_norm", training)
        p = ops.batch_norm(ops.linear(ops.relu(h), weights, "score"), weights, "score_norm", training)
        return {"channel": ops.expand(c, x), "position": p}
