"""Triplet attention: numbers worked out by hand, the published module and its weights, and the published variants."""

from itertools import product

import numpy as np
import pytest
import torch
from published import Published, assert_close, assert_reads_weights, batch_norm, norm_shapes
from torch import nn
from torch.nn import functional as F

from attzoo.blocks.triplet_attention.spec import TripletAttention


def unit_norm(name):
    """Return the weights of a batch norm that divides by (1 + 1e-5)^1/2."""
    return {f"{name}_norm.{part}": np.array([float(part in ("weight", "var"))])
            for part in ("weight", "bias", "mean", "var")}   # fmt: skip


def test_worked_out_by_hand():
    """Channels (1, 3) and (5, 0): means over w 2 and 5/2, maxima 3 and 5; kernels take the mean plus twice the max."""
    x, kernel = np.array([[[1.0, 3.0], [5.0, 0.0]]]), np.array([1.0, 2.0]).reshape(1, 2, 1)
    spec = TripletAttention(2, 1, spatial_dims=1)
    weights = {f"{name}_conv.weight": kernel for name in "cw"} | unit_norm("c") | unit_norm("w")
    channel, position = (1 / (1 + np.exp(-np.array(logits) / (1 + 1e-5) ** 0.5)) for logits in (
        (2 + 6, 2.5 + 10), (3 + 10, 1.5 + 6)))   # fmt: skip
    coefficients = spec.attention(x, weights=weights)
    assert_close(coefficients["c"], channel)
    assert_close(coefficients["w"], position)
    assert_close(spec(x, weights=weights), x[0] * (channel[:, None] + position) / 2)


@pytest.mark.parametrize(("space", "names"), [
    ((4,), {"c": 1, "w": 2}), ((4, 3), {"cw": 2, "hc": 3, "hw": 1}),
    ((2, 3, 4), {"chw": 2, "dcw": 3, "dhc": 4, "dhw": 1}),
])   # fmt: skip
def test_each_map_of_each_rank_by_loops(space, names):
    """A map pools over one axis, and its kernel, centred and not flipped, passes over the others; C replaces the axis.

    names: the axis of (N, C, *S) that each map pools over, except for "c" and "w", where the axis is found by its size.
    """
    names = {"c": 2, "w": 1} if len(space) == 1 else names
    rng, c = np.random.default_rng(0), 5
    x, spec = rng.normal(size=(2, c, *space)), TripletAttention(c, 3, spatial_dims=len(space))
    weights = {name: rng.uniform(0.5, 1.5, size=weight.shape) for name, weight in spec.weights.items()}
    coefficients = spec.attention(x, weights=weights)
    assert coefficients.keys() == names.keys()
    for name, pooled in names.items():
        moved = np.swapaxes(x, 1, pooled)   # (N, pooled axis, *map)
        planes = np.stack([moved.mean(1), moved.max(1)], 1)
        kernel, (w, b, mean, var) = weights[f"{name}_conv.weight"][0], (
            weights[f"{name}_norm.{part}"][0] for part in ("weight", "bias", "mean", "var"))   # fmt: skip
        expected = np.empty((2, 1, *moved.shape[2:]))
        for n, *i in np.ndindex(2, *moved.shape[2:]):
            q = 0.0
            for offset in product((-1, 0, 1), repeat=len(i)):
                j = tuple(a + o for a, o in zip(i, offset, strict=True))
                if all(0 <= a < size for a, size in zip(j, moved.shape[2:], strict=True)):
                    q += kernel[(slice(None), *(o + 1 for o in offset))] @ planes[(n, slice(None), *j)]
            expected[(n, 0, *i)] = 1 / (1 + np.exp(-((q - mean) / (var + 1e-5) ** 0.5 * w + b)))
        np.testing.assert_allclose(coefficients[name], np.swapaxes(expected, 1, pooled), rtol=1e-12)
    expected = x * sum(coefficients.values()) / len(names)
    np.testing.assert_allclose(spec(x, weights=weights), expected, rtol=1e-12)


def test_macs_are_those_of_the_three_convolutions():
    """Maps of 8 x 4, 5 x 8 and 5 x 4 pixels, 2 x 3 x 3 products each."""
    assert TripletAttention(8, 3).macs((2, 8, 5, 4)) == 2 * (32 + 40 + 20) * 18
    assert TripletAttention(8, 3, no_spatial=True).macs((2, 8, 5, 4)) == 2 * (32 + 40) * 18


# ---- the published module --------------------------------------------------------------------------------------------


class Gate(nn.Module):
    """AttentionGate of landskape-ai/triplet-attention@2cf02fb, by its keys: the maximum over axis 1 comes first."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Module()
        self.conv.conv, self.conv.bn = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x):
        pooled = torch.stack([x.amax(1), x.mean(1)], 1)
        return x * torch.sigmoid(self.conv.bn(self.conv.conv(pooled)))


class Official(nn.Module):
    """TripletAttention of the same file: x with H, or W, exchanged for C passes through a gate, and back."""

    def __init__(self, names=("cw", "hc", "hw")):
        super().__init__()
        for name in names:
            self.add_module(name, Gate())
        self.names = names

    def forward(self, x):
        axes = {"cw": 2, "hc": 3, "hw": 1}
        outputs = [getattr(self, n)(x.transpose(1, axes[n])).transpose(1, axes[n]) for n in self.names]
        return sum(outputs) / len(outputs)


@pytest.mark.parametrize("no_spatial", [False, True])
def test_published_weights_give_the_published_outputs(no_spatial):
    module = Official(("cw", "hc") if no_spatial else ("cw", "hc", "hw"))
    arguments = {"channels": 6, "no_spatial": no_spatial}
    assert_reads_weights(module, "official", "triplet_attention", arguments, [(2, 6, 9, 8), (2, 6, 1, 1)])


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------


def shapes_of(kernel, *names):
    """Return the canonical names and shapes of the arrays of these maps."""
    arrays = {}
    for name in names:
        arrays |= {f"{name}_conv.weight": kernel} | norm_shapes(f"{name}_norm", 1)
    return arrays


ARRAYS = {
    "": ({"channels": 5}, shapes_of((1, 2, 7, 7), "cw", "hc", "hw")),
    "3d": (
        {"channels": 5, "kernel_size": 3, "spatial_dims": 3},
        shapes_of((1, 2, 3, 3, 3), "chw", "dcw", "dhc", "dhw"),
    ),
}


# ---- published variants ----------------------------------------------------------------------------------------------


def triplet(x, w, training):
    """Compute triplet attention in plain torch, the maximum first with swapped planes of the kernels."""
    outputs = []
    for name, axis in (("cw", 2), ("hc", 3), ("hw", 1)):
        if f"{name}_conv.weight" in w:
            moved = x.transpose(1, axis)
            planes = torch.cat([moved.max(1, keepdim=True).values, moved.mean(1, keepdim=True)], 1)
            q = F.conv2d(planes, w[f"{name}_conv.weight"].flip(1), padding=3)
            outputs.append((moved * batch_norm(q, w, f"{name}_norm", training).sigmoid()).transpose(1, axis))
    return sum(outputs) / len(outputs)


TWO, THREE = (tuple(shapes_of((), *names)) for names in (("cw", "hc"), ("cw", "hc", "hw")))
PUBLISHED = {
    "paper": Published(triplet, THREE, {}),
    "official": Published(triplet, THREE, {}),
    "no-spatial": Published(triplet, TWO, {}),
}
