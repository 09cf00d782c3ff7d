"""The reference implementation of LKA and LSKA in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, NamedTuple

from ... import contract
from ...contract import Array, Example, Weight, fan_in_uniform
from ...ops import numpy as ops
from ..spec import BlockSpec


class Taps(NamedTuple):
    """Taps along an axis of the local and of the dilated kernel, and the distance of the latter's taps in pixels."""

    local: int
    dilated: int
    dilation: int


SIZES: Final[Mapping[bool, Mapping[int, Taps]]] = {   # separable -> kernel_size -> taps; the first is the default
    False: {21: Taps(5, 7, 3)},
    True: {
        7: Taps(3, 3, 2),
        11: Taps(3, 5, 2),
        23: Taps(5, 7, 3),
        35: Taps(5, 11, 3),
        41: Taps(5, 13, 3),
        53: Taps(5, 17, 3),
    },
}
CHOICES: Final = {"separable": (False, True), "kernel_size": (None, 7, 11), "spatial_dims": (2, 1, 3)}
EXAMPLES: Final = {
    "": Example({"channels": 4}, ((2, 4, 6, 5),)),
    "3d": Example({"channels": 2, "kernel_size": 11, "separable": True, "spatial_dims": 3}, ((2, 2, 3, 4, 5),)),
}


@dataclass(frozen=True)
class LKA(BlockSpec):
    """channels: C >= 1, channels of the input.

    kernel_size: 21, the size in the paper, whose window has 23 pixels along each axis; with separable=True 7, 11, 23,
        35, 41 or 53, the size of the window in pixels. None means 21, or 7 with separable=True.
    separable: whether each kernel is a sequence of kernels along one axis each (LSKA).
    spatial_dims: 1, 2 or 3, spatial axes of the input.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    kernel_size: int | None = None
    separable: bool = False
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        separable = contract.flag("separable", self.separable)
        allowed_sizes = tuple(SIZES[separable])
        size = allowed_sizes[0] if self.kernel_size is None else contract.integer("kernel_size", self.kernel_size)
        if size not in allowed_sizes:
            other_sizes = ", ".join(map(str, SIZES[not separable]))
            expected = f"kernel_size must be one of {', '.join(map(str, allowed_sizes))} with separable={separable}"
            raise ValueError(f"{expected}, got {size}: separable={not separable} has {other_sizes}")
        contract.set_fields(
            self,
            channels=contract.integer("channels", self.channels),
            kernel_size=size,
            separable=separable,
            spatial_dims=contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3)),
        )

    @property
    def taps(self) -> Taps:
        """Return the numbers of taps and the dilation."""
        assert self.kernel_size is not None   # set in __post_init__; for the type checker
        return SIZES[self.separable][self.kernel_size]

    @property
    def dilations(self) -> dict[str, int]:
        """Return the dilation of each convolution by name, in the order of computation."""
        if not self.separable:
            return {"local": 1, "dilated": self.taps.dilation}
        numbers = range(1, self.spatial_dims + 1)
        return {f"local{i}": 1 for i in numbers} | {f"dilated{i}": self.taps.dilation for i in numbers}

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        dims, weights = self.spatial_dims, dict[str, Weight]()
        for name in self.dilations:
            taps = self.taps.local if name.startswith("local") else self.taps.dilated
            axis = dims - int(name[-1]) if self.separable else None   # None: along all axes
            kernel = tuple(taps if axis in (None, i) else 1 for i in range(dims))
            weights |= fan_in_uniform(name, (self.channels, 1, *kernel), bias=True)
        return weights | fan_in_uniform("mix", (self.channels, self.channels), bias=True)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the convolutions, for x of shape (N, C, *S)."""
        return x[0] * prod(x[2:]) * sum(w.size for name, w in self.weights.items() if name.endswith(".weight"))

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the coefficients."""
        self.check_inputs(x.shape)
        h = x
        for name, dilation in self.dilations.items():
            h = ops.conv(h, weights, name, dilation=dilation)
        return ops.linear(h, weights, "mix")
