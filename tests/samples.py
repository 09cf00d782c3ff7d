"""Blocks for the ecosystem tests of each framework, inputs for them, and what both ask of a start."""

from dataclasses import dataclass
from math import sqrt
from typing import Any
from unittest.mock import patch
from zlib import crc32

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
LAST_OF_EACH = list({sample.block: name for name, sample in SAMPLES.items()}.values())   # of every block one, by key

# The network of all blocks: x of 8 channels and two axes goes through each block in turn, first through those of one
# input, then through the others, which take g of 6 channels.
NET = Sample("all", {}, ((2, 8, 7, 6), (2, 6, 2, 3)))


def network():
    """The samples of its blocks, by name: each from the last example of two axes, at the network's channels.

    A block without an example of two axes is not among them.
    """
    samples = {}
    for name in attzoo.names():
        examples = [example for example in registry.examples(name).values() if len(example.shapes[0]) == 4]
        further = [a.name for a in attzoo.info(name).arguments if a.channels_of]
        channels = dict(zip(["channels", *further], (8, *(6,) * len(further)), strict=True))
        for example in examples[-1:]:
            samples[name] = Sample(name, {**example.arguments, **channels}, NET.shapes[: 1 + len(further)])
    return dict(sorted(samples.items(), key=lambda item: len(item[1].shapes)))


def seed_of(name):
    """A seed of a block's own, so that another block in a network changes none of its numbers."""
    return crc32(name.encode())


def pooled_starts(sample, read, backend, blocks=40, **kwargs):
    """The arrays of so many new blocks, by canonical name: enough numbers to tell one distribution from another."""
    arrays = [read(sample.create(backend, **kwargs)) for _ in range(blocks)]
    return {name: np.concatenate([each[name].ravel() for each in arrays]) for name in arrays[0]}


def assert_starts_as(array, weight):
    """Whether an array could be a draw from a weight's start: bounds, mean, spread, and with enough values, tails."""
    offset = np.asarray(array, np.float64) - weight.center
    if weight.initialization == "constant":
        assert not offset.any()
        return
    spread = weight.scale / sqrt(3) if weight.initialization == "uniform" else weight.scale
    assert abs(offset.mean()) < 5 * spread / sqrt(offset.size)
    if offset.size > 1:
        assert 1 - 4 / sqrt(offset.size) < offset.std() / spread < 1 + 4 / sqrt(offset.size)
    reach = abs(offset).max() / spread   # the square root of 3 bounds a uniform draw; 1000 normal ones pass it surely
    if weight.initialization == "uniform":
        assert reach <= sqrt(3) * (1 + 1e-6)
    elif offset.size >= 1000:
        assert reach > 2.5


def pooling():
    """The blocks whose specs average over space."""
    averaging = []
    for name in attzoo.names():
        sample, real = SAMPLES[name], ops.avg_pool
        spec = sample.create("numpy")
        weights = {key: np.full(weight.shape, weight.center) for key, weight in spec.weights.items()}
        with patch.object(ops, "avg_pool", lambda x, name=name, real=real: averaging.append(name) or real(x)):
            spec(*sample.arrays(), weights=weights)
    return list(dict.fromkeys(averaging))


def is_clear_of_zero(spec, weights, inputs, least=1e-4):
    """Whether no relu of a block meets a number near zero, less than `least` times its largest one.

    A number within rounding of zero is passed on by one correct implementation and not by another, and their gradients
    differ by all of it. `least` is a thousand times what float32 rounds by.
    """
    seen = []
    with patch.object(ops, "relu", lambda z: seen.append(np.abs(z)) or np.maximum(z, 0)):
        spec(*inputs, weights={name: array.astype(np.float64) for name, array in weights.items()})
    return all(z.min() >= least * z.max() for z in seen)
