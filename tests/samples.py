"""Blocks for the ecosystem tests of each framework, inputs for them, and what both ask of a start."""

from dataclasses import dataclass
from math import sqrt
from typing import Any
from unittest.mock import patch

import numpy as np

import attzoo
from attzoo import registry
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
    f"{block}-{label}".rstrip("-"): Sample(block, dict(example.arguments), example.shapes)
    for block in attzoo.names()
    for label, example in registry.examples(block).items()
}


def pooled_starts(sample, read, backend, blocks=40):
    """The arrays of so many new blocks, by canonical name: enough numbers to tell one distribution from another."""
    arrays = [read(sample.create(backend)) for _ in range(blocks)]
    return {name: np.concatenate([each[name].ravel() for each in arrays]) for name in arrays[0]}


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
