"""scSE: numbers worked out by hand, the published modules and their weights, and the published variants."""

from functools import partial

import numpy as np
import pytest
import torch
from published import (
    FLOOR_16,
    SQUEEZE,
    Published,
    arrays_of,
    assert_close,
    assert_reads_weights,
    perceptron,
    pointwise,
    widths,
)
from torch import nn

from attzoo.blocks.scse.spec import SCSE


def test_worked_out_by_hand():
    """The mean 1 gives the channel's coefficient 1 / (1 + e^-2); positions have 1 / (1 + e^-(x + 1))."""
    x = np.array([[[0.0, 2.0]]])
    weights = {name: np.ones(shape) for name, shape in {
        "squeeze.weight": (1, 1), "excite.weight": (1, 1), "excite.bias": (1,), "position.weight": (1, 1),
        "position.bias": (1,),
    }.items()} | {"squeeze.bias": np.zeros(1)}   # fmt: skip
    channel, position = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-np.array([1.0, 3.0])))
    coefficients = SCSE(1).attention(x, weights=weights)
    assert_close(coefficients["channel"], [channel])
    assert_close(coefficients["position"], position)
    assert_close(SCSE(1)(x, weights=weights), [0, 2 * position[1]])
    summed = SCSE(1, combination="sum_of_products")(x, weights=weights)
    assert_close(summed, [0, 2 * (channel + position[1])])


def test_maximum_is_of_products_not_of_coefficients():
    """For a negative x the larger product is that of the smaller coefficient, as in the official code."""
    weights = {name: np.zeros(weight.shape) for name, weight in SCSE(1).weights.items()}
    weights["position.bias"] = np.array([np.log(3)])   # coefficients 1/2 and 3/4
    assert_close(SCSE(1)(np.array([[[-4.0, 4.0]]]), weights=weights), [-2, 3])


@pytest.mark.parametrize("combination", ["max_of_products", "sum_of_products"])
def test_formula_of_the_paper_in_numpy(combination):
    """Roy et al. 2018: sigma(W1 relu(W2 z)) x for channels, sigma(Wsq x) x for positions, z the means."""
    rng = np.random.default_rng(0)
    u, w2, w1, wsq = (rng.normal(size=shape) for shape in ((2, 6, 4, 5), (3, 6), (6, 3), (6,)))
    channel_scaled, position_scaled = np.empty_like(u), np.empty_like(u)
    for n in range(2):
        z = np.array([u[n, c].sum() / 20 for c in range(6)])
        channel_scaled[n] = u[n] * (1 / (1 + np.exp(-w1 @ np.maximum(w2 @ z, 0))))[:, None, None]
        for i, j in np.ndindex(4, 5):
            position_scaled[n, :, i, j] = u[n, :, i, j] / (1 + np.exp(-wsq @ u[n, :, i, j]))
    total = channel_scaled + position_scaled
    expected = total if combination == "sum_of_products" else np.maximum(channel_scaled, position_scaled)
    weights = {"squeeze.weight": w2, "excite.weight": w1, "position.weight": wsq[None]}
    spec = SCSE(6, bias=False, combination=combination)
    np.testing.assert_allclose(spec(u, weights=weights), expected, rtol=1e-12)


def test_one_coefficient_per_position():
    """Some copies compute one per channel and position."""
    assert SCSE(8).weights["position.weight"].shape == (1, 8)


def test_macs_are_those_of_the_three_linear_maps():
    assert SCSE(8, reduced_channels=3).macs((2, 8, 5, 4)) == 2 * (2 * 8 * 3 + 8 * 20)


# ---- the published modules -------------------------------------------------------------------------------------------


class Official(nn.Module):
    """ChannelSpatialSELayer of ai-med/squeeze_and_excitation@acdd26e, by its keys: the larger of both products."""

    def __init__(self, c, r):
        super().__init__()
        self.cSE, self.sSE = nn.Module(), nn.Module()
        self.cSE.fc1, self.cSE.fc2 = nn.Linear(c, r), nn.Linear(r, c)
        self.sSE.conv = nn.Conv2d(c, 1, 1)

    def forward(self, x):
        coefficients = self.cSE.fc2(torch.relu(self.cSE.fc1(x.mean((2, 3))))).sigmoid()
        return torch.max(x * coefficients[:, :, None, None], x * self.sSE.conv(x).sigmoid())


class SMP(nn.Module):
    """SCSEModule of segmentation-models-pytorch, by its keys: the sum of both products."""

    def __init__(self, c, r):
        super().__init__()
        convolutions = nn.Conv2d(c, r, 1), nn.ReLU(), nn.Conv2d(r, c, 1)
        self.cSE = nn.Sequential(nn.AdaptiveAvgPool2d(1), *convolutions, nn.Sigmoid())
        self.sSE = nn.Sequential(nn.Conv2d(c, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.cSE(x) + x * self.sSE(x)


@pytest.mark.parametrize(("module", "source", "arguments"), [
    (Official(6, 3), "official", {"channels": 6}),
    (SMP(6, 2), "smp", {"channels": 6, "reduced_channels": 2, "combination": "sum_of_products"}),
])   # fmt: skip
def test_published_weights_give_the_published_outputs(module, source, arguments):
    assert_reads_weights(module, source, "scse", arguments, [(2, 6, 7, 5), (1, 6, 1, 1)])


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

POSITION = {"position.weight": (1, 32), "position.bias": (1,)}
ARRAYS = {"": ({"channels": 32, "reduction": 16}, SQUEEZE | POSITION)}


# ---- published variants ----------------------------------------------------------------------------------------------


def scse(x, w, training, combine):
    """Compute scSE from both products."""
    return combine(x * perceptron(x.mean((2, 3), keepdim=True), w).sigmoid(), x * pointwise(x, w, "position").sigmoid())


MATRICES = arrays_of("squeeze", "excite", "position", weight_names=("weight",))
BIASED = arrays_of("squeeze", "excite", "position")
HALVES = widths((2, 4, 8, 12, 20, 32, 36, 48, 50, 100, 150, 256))
PUBLISHED = {
    "paper": Published(partial(scse, combine=torch.add), MATRICES, HALVES),
    "ai-med": Published(partial(scse, combine=torch.maximum), BIASED, HALVES),
    "smp": Published(partial(scse, combine=torch.add), BIASED, widths(FLOOR_16)),
}
