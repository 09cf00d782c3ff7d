"""The reference implementation of GE in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from ... import contract
from ...contract import Array, Example, Weight, batch_norm, fan_in_uniform
from ...ops import numpy as ops
from ..bottleneck import CHOICES as BOTTLENECK
from ..bottleneck import HiddenWidth

EXTENTS: Final = (0, 2, 4, 8, 16, 32)
TAPS: Final = 3   # of the learned convolutions, along each axis
CHOICES: Final = {
    "learned": (True, False),   # before `extent`, which may be 0 only if this is False
    "mlp": (True, False),       # before the two arguments that need it
    "reduction": BOTTLENECK["reduction"],
    "reduced_channels": BOTTLENECK["reduced_channels"],
    "extent": (8, 0, 2, 4),
    "spatial_dims": (2, 1, 3),
}
EXAMPLES: Final = {
    "": Example({"channels": 8, "reduced_channels": 2, "extent": 4}, ((2, 8, 6, 5),)),
    "means": Example({"channels": 4, "extent": 2, "learned": False, "mlp": False}, ((2, 4, 5, 6),)),
    "global": Example({"channels": 4, "extent": 0, "learned": False, "mlp": False}, ((2, 4, 3, 4),)),
}


@dataclass(frozen=True)
class GE(HiddenWidth):
    """channels: C >= 1, channels of the input.

    reduction: >= 1, dimensionless; the hidden layer has max(1, C // reduction) units; None means 16. Only with
        mlp=True.
    reduced_channels: R >= 1, hidden units; None means the number of the rule above. Give only one of the two, and only
        with mlp=True.
    extent: E, distance of the gathered values, in pixels, which come from windows of 2 E - 1 pixels along each axis:
        2, 4, 8, 16 or 32; 0 for the whole input, only with learned=False.
    learned: whether convolutions gather the values; otherwise they are means.
    mlp: whether two linear maps of the channels follow.
    spatial_dims: 1, 2 or 3, spatial axes of the input.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    extent: int = 8
    learned: bool = True
    mlp: bool = True
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        mlp = contract.flag("mlp", self.mlp)
        given = next((name for name in ("reduction", "reduced_channels") if getattr(self, name) is not None), "")
        super().__post_init__()   # checks `channels` and the two others
        if not mlp:
            if given:
                got = f"{given}={getattr(self, given)} and mlp=False"
                raise ValueError(f"{given} must be None without the linear maps, got {got}: leave {given} out")
            contract.set_fields(self, reduction=None, reduced_channels=None)
        contract.set_fields(
            self,
            extent=contract.choice("extent", self.extent, EXTENTS),
            learned=contract.flag("learned", self.learned),
            mlp=mlp,
            spatial_dims=contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3)),
        )
        if self.learned and not self.extent:
            fix = "give another extent, or learned=False"
            raise ValueError(f"extent must be >= 2 with learned=True, whose kernels have a fixed size, got 0: {fix}")

    @property
    def steps(self) -> range:
        """Return the numbers of the learned convolutions: 1 to log2(extent), or none."""
        return range(1, self.extent.bit_length() if self.learned else 1)

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        c, weights = self.channels, dict[str, Weight]()
        for i in self.steps:
            weights |= fan_in_uniform(f"conv{i}", (c, 1, *(TAPS,) * self.spatial_dims), bias=False)
            weights |= batch_norm(f"norm{i}", c)
        if self.mlp:
            weights |= fan_in_uniform("squeeze", (self.width, c), bias=True)
            weights |= fan_in_uniform("excite", (c, self.width), bias=True)
        return weights

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the convolutions and linear maps, for x of shape (N, C, *S)."""
        def positions(stride: int) -> int:
            """Return the number of positions that are `stride` pixels apart, in all samples."""
            return prod((x[0], *(-(-size // stride) for size in x[2:])))

        kernel: int = self.channels * TAPS**self.spatial_dims
        linear = 2 * self.channels * self.width * positions(self.extent or max(x[2:])) if self.mlp else 0
        return linear + sum(kernel * positions(2**i) for i in self.steps)

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S), or (N, C, 1..) if the extent is 0. Return the coefficients."""
        self.check_inputs(x.shape)
        p = x
        if self.extent == 0:
            p = ops.expand(ops.avg_pool(x), x)             # (N, C, 1..)
        elif not self.learned:
            p = ops.strided_avg_pool(x, self.extent)       # (N, C, *L)
        for i in self.steps:
            p = ops.relu(p) if i > 1 else p
            p = ops.conv(p, weights, f"conv{i}", (2,) * self.spatial_dims)
            p = ops.batch_norm(p, weights, f"norm{i}", training)
        if self.mlp:
            h = ops.relu(ops.linear(p, weights, "squeeze"))   # (N, R, *L)
            p = ops.linear(h, weights, "excite")
        a = ops.sigmoid(p)
        return ops.resize(a, x.shape[2:], "floor", False) if self.extent else a
