"""Blocks for the ecosystem tests of each framework, inputs for them, and what both ask of a start."""

from dataclasses import dataclass
from math import sqrt
from typing import Any
from unittest.mock import patch

import numpy as np

import attzoo
from attzoo.ops import numpy as ops


@dataclass(frozen=True)
class Sample:
    """A block's name and arguments, and the shape of each input, channels first."""

    block: str
    config: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    def create(self, backend, **kwargs):
        return attzoo.create(self.block, **self.config, backend=backend, **kwargs)

    def arrays(self, more=0, seed=0):
        """Float64 inputs, channels first; with `more`, of a larger batch and of other sizes, each axis its own."""
        rng = np.random.default_rng(seed)
        return [
            rng.normal(size=(n + more, c, *(s + more * (i + axis) for axis, s in enumerate(space, start=1))))
            for i, (n, c, *space) in enumerate(self.shapes)
        ]


SAMPLES = {
    "se": Sample("se", {"channels": 8, "reduction": 2}, ((2, 8, 6, 5),)),
    "channel_attention": Sample(
        "channel_attention",
        {"channels": 8, "reduced_channels": 5, "bias": False, "gate": "hard_sigmoid"},
        ((2, 8, 5, 4),),
    ),
    "spatial_attention": Sample("spatial_attention", {"channels": 3}, ((2, 3, 4, 7),)),
    "spatial_attention-1d": Sample(
        "spatial_attention", {"channels": 3, "kernel_size": 3, "norm": True, "spatial_dims": 1}, ((2, 3, 9),)
    ),
    "cbam": Sample("cbam", {"channels": 8, "reduction": 2, "kernel_size": 3, "norm": True}, ((2, 8, 6, 5),)),
    "cbam-3d": Sample("cbam", {"channels": 4, "reduction": 2, "kernel_size": 3, "spatial_dims": 3}, ((2, 4, 3, 2, 4),)),
    "eca": Sample("eca", {"channels": 8, "kernel_size": 5, "padding": "circular"}, ((2, 8, 6, 5),)),
    "attention_gate": Sample("attention_gate", {"channels": 6, "gating_channels": 4}, ((2, 6, 4, 5), (2, 4, 4, 5))),
    "attention_gate-coarse": Sample(
        "attention_gate",
        {"channels": 6, "gating_channels": 4, "stride": 2, "skip_bias": False, "norm": True, "output_transform": True},
        ((2, 6, 7, 6), (2, 4, 2, 3)),
    ),
    "attention_gate-1d": Sample(
        "attention_gate",
        {"channels": 4, "gating_channels": 5, "stride": 2, "align_corners": True, "spatial_dims": 1},
        ((2, 4, 7), (2, 5, 2)),
    ),
    "attention_gate-3d": Sample(
        "attention_gate",
        {"channels": 4, "gating_channels": 3, "stride": (1, 2, 2), "interpolation": "nearest", "spatial_dims": 3},
        ((2, 4, 3, 4, 5), (2, 3, 2, 3, 2)),
    ),
}
LARGE = {   # enough weights of every kind to tell one distribution from another
    "se": {"channels": 128, "reduction": 4},
    "channel_attention": {"channels": 128, "reduction": 4},
    "spatial_attention": {"channels": 4, "kernel_size": 41, "norm": True},
    "cbam": {"channels": 128, "reduction": 4, "kernel_size": 41},
    "eca": {"channels": 8, "kernel_size": 4001},
    "attention_gate": {
        "channels": 96, "gating_channels": 80, "inter_channels": 64, "stride": 2, "norm": True, "output_transform": True
    },
}   # fmt: skip


def assert_starts_as(array, weight):
    """Whether an array could be a draw from a weight's start: bounds, mean, spread, and with enough values, tails."""
    offset = np.asarray(array, np.float64) - weight.center
    if weight.start == "constant":
        assert not offset.any()
        return
    spread = weight.scale / sqrt(3) if weight.start == "uniform" else weight.scale
    assert abs(offset.mean()) < 5 * spread / sqrt(offset.size)
    if offset.size > 1:
        assert 1 - 4 / sqrt(offset.size) < offset.std() / spread < 1 + 4 / sqrt(offset.size)
    reach = abs(offset).max() / spread   # the square root of 3 bounds a uniform draw; 1000 normal ones pass it surely
    if weight.start == "uniform":
        assert reach <= sqrt(3) * (1 + 1e-6)
    elif offset.size >= 1000:
        assert reach > 2.5


def clear_of_zero(spec, weights, inputs, training=False, least=1e-4):
    """A gate's weights, one bias moved so that for these inputs no value before its relu is near zero.

    Near is less than `least` times the largest value, a thousand times what float32 rounds by.

    A value within rounding of zero is passed on by one correct implementation and not by another, and their gradients
    differ by all of it. A bias shifts a whole inner channel, whatever the sizes and norms: zero is put in the middle of
    the widest gap between values of its second and third quarters, so that relu still passes some and stops others.
    """
    seen = []
    with patch.object(ops, "relu", lambda z: seen.append(z) or np.maximum(z, 0)):
        spec(*inputs, weights={name: array.astype(np.float64) for name, array in weights.items()}, training=training)
    (values,) = seen
    bias = "gating_norm.bias" if spec.norm else "gating.bias"
    shifts = np.array([_middle_of_the_widest_gap(channel.ravel()) for channel in np.moveaxis(values, 1, 0)])
    distances = np.abs(values - ops.expand(shifts, values))
    assert distances.min() >= least * distances.max()
    return weights | {bias: (weights[bias] - shifts).astype(weights[bias].dtype)}


def _middle_of_the_widest_gap(values):
    """Among the second and third quarters of the values; one below a value that is alone."""
    ordered = np.sort(values)
    ordered = ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]
    if len(ordered) == 1:
        return ordered[0] - 1
    widest = np.diff(ordered).argmax()
    return ordered[widest : widest + 2].mean()
