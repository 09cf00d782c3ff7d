"""The reference implementation of SK in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd, prod
from operator import add
from typing import Any, ClassVar, Final

import numpy as np

from ... import contract
from ...contract import Array, Example, Weight, batch_norm, fan_in_uniform
from ...ops import numpy as ops
from .. import bottleneck
from ..bottleneck import HiddenWidth
from ..spec import Combination

MIN_WIDTH: Final = 32   # L of the paper: least R of the rule for `reduction`
GROUPS: Final = 32
CHOICES: Final = {
    "reduction": bottleneck.CHOICES["reduction"],
    "reduced_channels": bottleneck.CHOICES["reduced_channels"],
    "kernel_sizes": ((3, 5), (3, 3, 7)),
    "dilated": (True, False),
    "groups": (None, 1, 2),
    "split": (False, True),
    "spatial_dims": (2, 1, 3),
}
EXAMPLES: Final = {
    "": Example({"channels": 8, "reduced_channels": 3, "groups": 2}, ((3, 8, 6, 5),)),
    "split": Example({"channels": 6, "reduced_channels": 2, "groups": 1, "split": True}, ((3, 6, 6, 5),)),
}


@dataclass(frozen=True)
class SK(HiddenWidth):
    """channels: C >= 1, channels of the input and of the output.

    reduction: >= 1, dimensionless; the hidden layer has max(32, C // reduction) units; None means 16.
    reduced_channels: R >= 1, hidden units; None means the number of the rule above. Give only one of the two.
    kernel_sizes: at least two odd integers >= 3, the sizes of the windows of the paths, in pixels.
    dilated: whether each kernel has 3 taps along each axis with a distance of (size - 1) / 2, else `size` taps.
    groups: groups of the convolutions; None means the greatest common divisor of 32 and the input channels of a path.
    split: whether each path gets an equal part of the channels of x in order, else all of them.
    spatial_dims: 1, 2 or 3, spatial axes of the input.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    combination: ClassVar[Combination] = "own"
    min_width: ClassVar[int] = MIN_WIDTH
    kernel_sizes: Sequence[int] = (3, 5)
    dilated: bool = True
    groups: int | None = None
    split: bool = False
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = _kernel_sizes(self.kernel_sizes)
        contract.set_fields(
            self,
            kernel_sizes=sizes,
            dilated=contract.flag("dilated", self.dilated),
            split=contract.flag("split", self.split),
            spatial_dims=contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3)),
        )
        if self.split and self.channels % len(sizes):
            expected = f"channels must be a multiple of the {len(sizes)} paths with split=True"
            raise ValueError(f"{expected}, got {self.channels}: give such a number, or split=False")
        groups = gcd(GROUPS, self.path_channels) if self.groups is None else contract.integer("groups", self.groups)
        if self.path_channels % groups:
            divisors = [str(n) for n in range(1, self.path_channels + 1) if self.path_channels % n == 0]
            got = f"got {groups}: give {contract.shorten(', '.join(divisors), 200)}"
            raise ValueError(f"groups must divide the {self.path_channels} input channels of a path, {got}")
        contract.set_fields(self, groups=groups)

    @property
    def group_count(self) -> int:
        """Return the number of groups of the convolutions."""
        assert self.groups is not None   # set in __post_init__; for the type checker
        return self.groups

    @property
    def path_channels(self) -> int:
        """Return the number of input channels of each path."""
        return self.channels // len(self.kernel_sizes) if self.split else self.channels

    @property
    def paths(self) -> dict[str, int]:
        """Return the dilation of each path's convolution by name."""
        dilations = [(size - 1) // 2 if self.dilated else 1 for size in self.kernel_sizes]
        return {f"path{i}": dilation for i, dilation in enumerate(dilations, start=1)}

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        c, r, dims = self.channels, self.width, self.spatial_dims
        weights: dict[str, Weight] = {}
        for name, size in zip(self.paths, self.kernel_sizes, strict=True):
            kernel = (3 if self.dilated else size,) * dims
            weights |= fan_in_uniform(name, (c, self.path_channels // self.group_count, *kernel), bias=False)
            weights |= batch_norm(f"{name}_norm", c)
        weights |= fan_in_uniform("reduce", (r, c), bias=False) | batch_norm("reduce_norm", r)
        return weights | fan_in_uniform("select", (len(self.paths) * c, r), bias=False)

    def config(self) -> dict[str, Any]:
        """Return the arguments by name that create an equal spec, with every None replaced by its value."""
        return super().config() | {"kernel_sizes": list(self.kernel_sizes)}

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of the convolutions and matrices, for x of shape (N, C, *S)."""
        kernels = sum(self.weights[f"{name}.weight"].size for name in self.paths)
        matrices = sum(self.weights[f"{name}.weight"].size for name in ("reduce", "select"))
        return x[0] * (prod(x[2:]) * kernels + matrices)

    def attention(
        self,
        x: Array,
        *,
        weights: Mapping[str, Array],
        training: bool = False,
        outputs: Sequence[Array] | None = None,
    ) -> dict[str, Array]:
        """(N, C, *S) -> (N, C, 1..) per path. Return the coefficients.

        outputs: the result of `operands` for x, if it is known.
        """
        self.check_inputs(x.shape)
        outputs = self.operands(x, weights=weights, training=training) if outputs is None else outputs
        s = ops.avg_pool(reduce(add, outputs))                                                       # (N, C)
        h = ops.batch_norm(ops.linear(s, weights, "reduce"), weights, "reduce_norm", training)      # (N, R)
        z = ops.linear(ops.relu(h), weights, "select").reshape(len(x), len(self.paths), self.channels)
        a = ops.position_softmax(z.swapaxes(1, 2))                                                   # (N, C, paths)
        return {name: ops.expand(a[..., i], x) for i, name in enumerate(self.paths)}

    def operands(   # type: ignore[override]
        self, x: Array, *, weights: Mapping[str, Array], training: bool = False
    ) -> list[Array]:
        """(N, C, *S) -> (N, C, *S) per path. Return the outputs of the paths, which the coefficients multiply."""
        outputs, parts = [], np.split(x, len(self.paths), axis=1) if self.split else [x] * len(self.paths)
        for (name, dilation), part in zip(self.paths.items(), parts, strict=True):
            u = ops.conv(part, weights, name, dilation=dilation)
            outputs.append(ops.relu(ops.batch_norm(u, weights, f"{name}_norm", training)))
        return outputs

    def combine(self, x: Sequence[Any], coefficients: Any, ops: Any) -> Any:
        """Return the sum of the products of the paths' outputs, `x`, and their coefficients."""
        return reduce(add, (u * a for u, a in zip(x, coefficients.values(), strict=True)))

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the output."""
        self.check_inputs(x.shape)
        outputs = self.operands(x, weights=weights, training=training)
        coefficients = self.attention(x, weights=weights, training=training, outputs=outputs)
        y: Array = self.combine(outputs, coefficients, ops)
        return y


def _kernel_sizes(values: Any) -> tuple[int, ...]:
    """Return the sizes of windows as a tuple. Raise TypeError or ValueError for invalid ones."""
    sizes = contract.integers("kernel_sizes", values)
    if len(sizes) < 2 or any(size < 3 or size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel_sizes must be at least two odd integers >= 3, got {list(sizes)}")
    return sizes
