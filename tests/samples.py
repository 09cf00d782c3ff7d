"""Sample blocks and inputs for the tests of each framework, and checks of initializations."""

from dataclasses import dataclass
from math import sqrt
from typing import Any
from unittest.mock import patch
from zlib import crc32

import numpy as np
import pytest

import attzoo
from attzoo import registry
from attzoo.contract import by_name
from attzoo.ops import numpy as ops


def accepts(spec, arguments):
    """Whether a class of specs accepts these arguments together."""
    try:
        spec(**arguments)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Sample:
    """A block's name and arguments, and the shape of each input, channels first."""

    block: str
    config: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    def create(self, backend, **kwargs):
        """Return a new block with the arguments of the sample."""
        return attzoo.create(self.block, **self.config, backend=backend, **kwargs)

    @property
    def has_weights(self):
        """Whether the block has weights; SimAM has none."""
        return bool(self.create("numpy").weights)

    @property
    def has_statistics(self):
        """Whether the block has running statistics, those of a batch norm."""
        return any(not weight.trainable for weight in self.create("numpy").weights.values())

    @property
    def has_few_coefficients(self):
        """Whether all arrays of coefficients are smaller than the input x."""
        spec = self.create("numpy")
        weights = {name: np.ones(weight.shape) for name, weight in spec.weights.items()}
        x, *further = self.arrays()
        coefficients = by_name(spec.attention(x, *further, weights=weights))
        return all(array.size < x.size for array in coefficients.values())

    def single_values(self, dtype):
        """Return inputs of one sample and of as few pixels as possible, all ones."""
        steps = getattr(self.create("numpy"), "strides", (1,) * (len(self.shapes[0]) - 2))
        return [np.ones((1, shape[1], *steps), dtype) for shape in self.shapes]

    @property
    def has_single_values(self):
        """Whether a batch norm of the block has one value per channel for `single_values`, which is an error."""
        spec = self.create("numpy")
        weights = {name: np.ones(weight.shape) for name, weight in spec.weights.items()}
        try:
            spec(*self.single_values(np.float64), weights=weights, training=True)
        except ValueError:
            return True
        return False

    def arrays(self, increase=0, seed=0):
        """Draw normal float64 inputs, channels first.

        Args:
            increase: added to the batch size, and in different multiples to the spatial sizes.
            seed: seed of the random numbers.

        """
        rng = np.random.default_rng(seed)
        return [
            rng.normal(size=(n + increase, c, *(s + increase * (i + axis) for axis, s in enumerate(sizes, start=1))))
            for i, (n, c, *sizes) in enumerate(self.shapes)
        ]


SAMPLES = {
    f"{block}-{label}".rstrip("-"): Sample(block, dict(example.arguments), example.shapes)
    for block in attzoo.names()
    for label, example in registry.examples(block).items()
}
LAST_OF_EACH = list({sample.block: name for name, sample in SAMPLES.items()}.values())   # the last key of each block

# The network of all blocks: an image x of 8 channels passes through the blocks one after the other, first those with
# one input, then those that also take g, of 6 channels.
NET = Sample("all", {}, ((2, 8, 7, 6), (2, 6, 2, 3)))


def network(third=None):
    """Return the network's blocks by name: the last example of each block with 2-D inputs, at the network's channels.

    Blocks without such an example are omitted. With `third` 0, 1 or 2, a third of the blocks with one input is used.
    """
    single = [name for name in attzoo.names() if len(attzoo.info(name).inputs) == 1]
    omitted = set() if third is None else set(single) - set(single[third::3])
    samples = {}
    for name in attzoo.names():
        if name in omitted:
            continue
        examples = [example for example in registry.examples(name).values() if len(example.shapes[0]) == 4]
        further = [argument.name for argument in attzoo.info(name).arguments if argument.channels_of]
        channels = dict(zip(["channels", *further], (8, *(6,) * len(further)), strict=True))
        for example in examples[-1:]:
            samples[name] = Sample(name, {**example.arguments, **channels}, NET.shapes[: 1 + len(further)])
    return dict(sorted(samples.items(), key=lambda item: len(item[1].shapes)))


def in_thirds(test):
    """Run an expensive test with each third of the network's blocks, by default with one third."""
    return pytest.mark.parametrize("third", range(3))(pytest.mark.one_of_each(share=3)(test))


def zeros_of(spec):
    """Return the names of the weights, except biases, that are initially 0.

    Until they change, the output of a block that is initially the identity does not depend on its other weights.
    """
    arrays = {name: weight for name, weight in spec.weights.items() if weight.trainable and not name.endswith("bias")}
    return [name for name, weight in arrays.items() if weight.initialization == "constant" and weight.center == 0]


def fill_zeros(block):
    """Assign random numbers to the weights of `zeros_of` a block; return the block."""
    rng, arrays = np.random.default_rng(0), attzoo.weights(block)
    arrays |= {name: rng.normal(size=arrays[name].shape).astype(np.float32) for name in zeros_of(block.spec)}
    attzoo.load_weights(block, arrays)
    return block


def seed_of(name):
    """Return a seed that depends only on the block's name, so that a new block does not change others' numbers."""
    return crc32(name.encode())


def pooled_initial_arrays(sample, read, backend, blocks=40, **kwargs):
    """Return the initial weights of several new blocks, concatenated by canonical name.

    Args:
        sample: the Sample to create.
        read: function that returns a block's weights by canonical name.
        backend: backend of the blocks.
        blocks: number of blocks, enough to distinguish distributions.
        **kwargs: further arguments of the blocks.

    """
    arrays = [read(sample.create(backend, **kwargs)) for _ in range(blocks)]
    return {name: np.concatenate([block_arrays[name].ravel() for block_arrays in arrays]) for name in arrays[0]}


def assert_initialized_as(array, weight):
    """Assert that values have the mean, standard deviation and range of a weight's initialization."""
    offset = np.asarray(array, np.float64) - weight.center
    if weight.initialization == "constant":
        assert not offset.any()
        return
    std = weight.scale / sqrt(3) if weight.initialization == "uniform" else weight.scale
    assert abs(offset.mean()) < 5 * std / sqrt(offset.size)
    if offset.size > 1:
        assert 1 - 4 / sqrt(offset.size) < offset.std() / std < 1 + 4 / sqrt(offset.size)
    largest = abs(offset).max() / std   # uniform: at most sqrt(3); 1000 normal values exceed that almost surely
    if weight.initialization == "uniform":
        assert largest <= sqrt(3) * (1 + 1e-6)
    elif offset.size >= 1000:
        assert largest > 2.5


def pooling_blocks():
    """Return the names of the blocks whose specs average over space."""
    names = []
    for name in attzoo.names():
        sample, avg_pool = SAMPLES[name], ops.avg_pool
        spec = sample.create("numpy")
        weights = {key: np.full(weight.shape, weight.center) for key, weight in spec.weights.items()}
        with patch.object(ops, "avg_pool", lambda x, name=name, pool=avg_pool: names.append(name) or pool(x)):
            spec(*sample.arrays(), weights=weights)
    return list(dict.fromkeys(names))


def is_clear_of_zero(spec, weights, inputs, least=1e-4):
    """Whether no input of a relu is closer to 0 than `least` times the largest input of that relu.

    Rounding can change the sign of smaller inputs, so that the gradients of two correct implementations differ. `least`
    is a thousand times the rounding of float32.
    """
    relu_inputs = []
    with patch.object(ops, "relu", lambda z: relu_inputs.append(np.abs(z)) or np.maximum(z, 0)):
        spec(*inputs, weights={name: array.astype(np.float64) for name, array in weights.items()})
    return all(z.min() >= least * z.max() for z in relu_inputs)
