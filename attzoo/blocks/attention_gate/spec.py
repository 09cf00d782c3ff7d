"""The reference implementation of the additive attention gate in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from ... import contract
from ...contract import Array, Example, Shape, Weight, batch_norm, kaiming_normal
from ...ops import numpy as ops
from ..spec import BlockSpec

INTERPOLATIONS: Final = ("linear", "nearest")
CHOICES: Final = {
    "gating_channels": (1, 3, 8),
    "inter_channels": (None, 1, 5),
    "stride": (1, 2),
    "skip_bias": (True, False),
    "norm": (False, True),
    "output_transform": (False, True),
    "interpolation": INTERPOLATIONS,
    "align_corners": (False, True),
    "spatial_dims": (2, 1, 3),
}
EXAMPLES: Final = {
    "": Example({"channels": 6, "gating_channels": 4, "norm": True}, ((2, 6, 4, 5), (2, 4, 4, 5))),
    "coarse": Example(
        {"channels": 6, "gating_channels": 4, "stride": 2, "skip_bias": False, "norm": True, "output_transform": True},
        ((2, 6, 7, 6), (2, 4, 2, 3)),
    ),
    "1d": Example(
        {"channels": 4, "gating_channels": 5, "stride": 2, "align_corners": True, "spatial_dims": 1},
        ((2, 4, 7), (2, 5, 2)),
    ),
    "3d": Example(
        {"channels": 4, "gating_channels": 3, "stride": (1, 2, 2), "interpolation": "nearest", "spatial_dims": 3},
        ((2, 4, 3, 4, 5), (2, 3, 2, 3, 2)),
    ),
}


@dataclass(frozen=True)
class AttentionGate(BlockSpec):
    """channels: C >= 1, channels of the skip x.

    gating_channels: G >= 1, channels of the gating signal g.
    inter_channels: F >= 1, channels in which x and g are added; None means max(1, C // 2).
    stride: >= 1, in pixels, one number or one per spatial axis: kernel and stride of x's projection.
    skip_bias: whether x's projection has a bias.
    norm: whether batch norm follows each of the three projections.
    output_transform: whether a 1x1 convolution and batch norm follow the product.
    interpolation: "linear" or "nearest", how g and the coefficients are resampled where sizes differ.
    align_corners: whether linear resampling maps corner pixels' centres to each other; else their outer edges.
    spatial_dims: 1, 2 or 3, spatial axes of x and g.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    channels: int
    gating_channels: int = contract.channels_of("g")
    inter_channels: int | None = None
    stride: int | Sequence[int] = 1
    skip_bias: bool = True
    norm: bool = False
    output_transform: bool = False
    interpolation: str = "linear"
    align_corners: bool = False
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        channels = contract.integer("channels", self.channels)
        dims = contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3))
        inter_channels = max(1, channels // 2) if self.inter_channels is None else self.inter_channels
        strides = tuple(self.stride) if isinstance(self.stride, list | tuple) else (self.stride,) * dims
        if len(strides) != dims:
            raise ValueError(f"stride must be one integer or {dims}, one per spatial axis, got {self.stride!r}")
        contract.set_fields(
            self,
            channels=channels,
            gating_channels=contract.integer("gating_channels", self.gating_channels),
            inter_channels=contract.integer("inter_channels", inter_channels),
            stride=tuple(contract.integer("stride", step) for step in strides),
            skip_bias=contract.flag("skip_bias", self.skip_bias),
            norm=contract.flag("norm", self.norm),
            output_transform=contract.flag("output_transform", self.output_transform),
            interpolation=contract.choice("interpolation", self.interpolation, INTERPOLATIONS),
            align_corners=contract.flag("align_corners", self.align_corners),
            spatial_dims=dims,
        )
        if self.align_corners and self.interpolation != "linear":
            got = f"got True and interpolation={self.interpolation!r}"
            raise ValueError(f"align_corners must be False unless interpolation='linear', {got}")

    @property
    def width(self) -> int:
        """Return F, the number of channels in which x and g are added."""
        assert self.inter_channels is not None   # set in __post_init__; for the type checker
        return self.inter_channels

    @property
    def strides(self) -> tuple[int, ...]:
        """Return kernel size and stride of x's projection, in pixels per spatial axis."""
        assert isinstance(self.stride, tuple)   # set in __post_init__; for the type checker
        return self.stride

    @property
    def inputs(self) -> tuple[int, ...]:
        """Return the number of channels of each input, x and g."""
        return (self.channels, self.gating_channels)

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name; as in the official code."""
        c, g, f = self.channels, self.gating_channels, self.width
        kernel = self.strides if prod(self.strides) > 1 else ()
        weights = kaiming_normal("skip", (f, c, *kernel), bias=self.skip_bias)
        weights |= kaiming_normal("gating", (f, g), bias=True) | kaiming_normal("psi", (1, f), bias=True)
        if self.norm:
            for name, width in (("skip_norm", f), ("gating_norm", f), ("psi_norm", 1)):
                weights |= batch_norm(name, width, scale=0.02)
        if self.output_transform:
            weights |= kaiming_normal("output", (c, c), bias=True) | batch_norm("output_norm", c, scale=0.02)
        return weights

    def config(self) -> dict[str, Any]:
        """Return the arguments by name that create an equal spec, with every None replaced by its value."""
        return super().config() | {"stride": list(self.strides)}

    def check_inputs(self, x: Shape, g: Shape, *, channels_last: bool = False) -> None:   # type: ignore[override]
        """Raise ValueError unless the shapes are (N, C, *S), S at least the stride, and (N, G, *G), with equal N.

        With `channels_last`, they are (N, *S, C) and (N, *G, G).
        """
        axis, channels = -1 if channels_last else 1, (self.channels, self.gating_channels)
        if min(len(x), len(g)) > 2 and (x[axis], g[axis]) == channels[::-1] != channels:
            got = f"{x[axis]} and {g[axis]}: pass x, the skip connection, before g, the gating signal"
            raise ValueError(f"expected x with {channels[0]} channels and g with {channels[1]}, got {got}")
        contract.check_shape(x, self.channels, self.spatial_dims, channels_last, least=self.strides)
        contract.check_shape(g, self.gating_channels, self.spatial_dims, channels_last)
        if None not in (x[0], g[0]) and x[0] != g[0]:
            raise ValueError(f"expected x and g of one batch size, got {x[0]} and {g[0]} samples")

    def macs(self, x: Sequence[int], g: Sequence[int]) -> int:
        """Return the number of multiply-adds of the projections for inputs of these shapes, without resampling."""
        theta = prod(size // step for size, step in zip(x[2:], self.strides, strict=True))
        skip = theta * self.width * (self.channels * prod(self.strides) + 1)   # + 1: psi
        output = prod(x[2:]) * self.channels**2 if self.output_transform else 0
        return x[0] * (skip + prod(g[2:]) * self.width * self.gating_channels + output)

    def attention(self, x: Array, g: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S), (N, G, *G) -> (N, 1, *S). Return the coefficients."""
        self.check_inputs(x.shape, g.shape)
        resampling = self.interpolation, self.align_corners
        skip = ops.batch_norm(ops.strided(x, weights, "skip"), weights, "skip_norm", training)
        gating = ops.batch_norm(ops.linear(g, weights, "gating"), weights, "gating_norm", training)
        h = ops.relu(skip + ops.resize(gating, skip.shape[2:], *resampling))
        logits = ops.batch_norm(ops.linear(h, weights, "psi"), weights, "psi_norm", training)
        return ops.resize(ops.sigmoid(logits), x.shape[2:], *resampling)

    def __call__(   # type: ignore[override]
        self, x: Array, g: Array, *, weights: Mapping[str, Array], training: bool = False
    ) -> Array:
        """(N, C, *S), (N, G, *G) -> (N, C, *S). Return the output."""
        y: Array = self.combine(x, self.attention(x, g, weights=weights, training=training), ops)
        if not self.output_transform:
            return y
        return ops.batch_norm(ops.linear(y, weights, "output"), weights, "output_norm", training)
