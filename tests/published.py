"""What the files in tests/blocks state of published variants, and layers in plain torch that their sources share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

import attzoo

MAP = (2, 40, 6, 5)
CHANNELS = (4, 8, 16, 24, 40, 64, 72, 96, 100, 200, 300, 512)
FLOOR_16 = (1, 1, 1, 1, 2, 4, 4, 6, 6, 12, 18, 32)   # the sources have 0 for the first two
FLOOR_8 = (1, 1, 2, 3, 5, 8, 9, 12, 12, 25, 37, 64)
HALF_UP_16 = (1, 1, 1, 2, 3, 4, 5, 6, 6, 13, 19, 32)


@dataclass(frozen=True)
class Published:
    """A variant of a block as its source has it.

    function: what the source computes, (*inputs, arrays by canonical name, training) -> output, in plain torch.
    arrays: the canonical names of the arrays that the source holds.
    sizes: channels of the inputs -> properties of the spec at these channels; {} where no size follows from them.
    shapes: of the inputs for which block and function are compared, one tuple of shapes for each comparison.
    """

    function: Callable[..., torch.Tensor]
    arrays: tuple[str, ...]
    sizes: Mapping[tuple[int, ...], Mapping[str, int]]
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ((MAP,),)


def widths(values):
    """Sizes of a block whose hidden width is `values` at CHANNELS."""
    return {(channels,): {"width": width} for channels, width in zip(CHANNELS, values, strict=True)}


def arrays_of(*layers, leaves=("weight", "bias")):
    """The canonical names of these layers' arrays."""
    return tuple(f"{layer}.{leaf}" for layer in layers for leaf in leaves)


def norms_of(*layers):
    """The canonical names of the arrays of these batch norms."""
    return arrays_of(*layers, leaves=("weight", "bias", "mean", "var"))


def create(block, variant, channels, backend="numpy", **arguments):
    """A block in a published variant; `channels` of each input, of which a block takes as many as it has inputs."""
    named = ["channels", *(a.name for a in attzoo.info(block).arguments if a.channels_of)]
    arguments |= zip(named, channels, strict=False)
    return attzoo.create(block, **arguments, backend=backend, variant=variant)


def assert_close(got, expected):
    """Whether numbers are those worked out by hand, to the last digits of float64."""
    np.testing.assert_allclose(np.asarray(got).ravel(), np.asarray(expected, float).ravel(), rtol=1e-14, atol=1e-15)


# ---- layers that several sources have --------------------------------------------------------------------------------


def pointwise(x, w, name):
    """A 1x1 convolution: (N, I, *S) -> (N, O, *S)."""
    conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    return conv(x, w[f"{name}.weight"][(..., *(None,) * (x.ndim - 2))], w.get(f"{name}.bias"))


def batch_norm(x, w, name, training):
    """Batch norm that leaves its running statistics as they are."""
    mean, var = w[f"{name}.mean"].clone(), w[f"{name}.var"].clone()
    return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], training)


def perceptron(s, w, prefix=""):
    """Two 1x1 convolutions with a relu between them."""
    return pointwise(pointwise(s, w, f"{prefix}squeeze").relu(), w, f"{prefix}excite")


def channel_gate(x, w, training, prefix=""):
    """Channel attention: one perceptron for the average and the maximum over space."""
    size = x.shape[2:]
    return x * torch.sigmoid(sum(perceptron(pool(x, size), w, prefix) for pool in (F.avg_pool2d, F.max_pool2d)))


def spatial_gate(x, w, training, prefix="", max_first=False, norm=True):
    """Spatial attention. The official code puts the maximum first, so its kernel has the planes of ours swapped."""
    planes, kernel = [x.mean(1, keepdim=True), x.max(1, keepdim=True).values], w[f"{prefix}conv.weight"]
    if max_first:
        planes, kernel = planes[::-1], kernel.flip(1)
    q = F.conv2d(torch.cat(planes, 1), kernel, padding=3)
    return x * torch.sigmoid(batch_norm(q, w, f"{prefix}norm", training) if norm else q)
