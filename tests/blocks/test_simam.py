"""SimAM: numbers worked out by hand, the paper's formula, maps of one pixel, and the published variants."""

from functools import partial

import numpy as np
import pytest
import torch
from published import MAP, Published, assert_close

import attzoo
from attzoo.adapters import adapter
from attzoo.blocks.simam.spec import SimAM


def test_worked_out_by_hand():
    """Values 0, 2, 4: mean 2, squares 4, 0, 4, variance 8 / 2. With lambda 4: 4 / (4 * 8) + 1/2 = 5/8, and 1/2."""
    got = SimAM(1, 4.0).attention(np.array([[[0.0, 2.0, 4.0]]]), weights={})
    assert_close(got, 1 / (1 + np.exp(-np.array([5 / 8, 1 / 2, 5 / 8]))))


@pytest.mark.parametrize("space", [(7,), (3, 4), (2, 3, 2)])
def test_energy_of_the_paper_in_numpy(space):
    """Yang et al. 2021: e* = 4 (s2 + lambda) / ((t - m)^2 + 2 s2 + 2 lambda), and y = x * sigmoid(1 / e*)."""
    x, expected = np.random.default_rng(0).normal(size=(2, 3, *space)), np.empty((2, 3, *space))
    for n, c in np.ndindex(2, 3):
        values = x[n, c].ravel()
        m = values.sum() / values.size
        s2 = ((values - m) ** 2).sum() / values.size
        energy = 4 * (s2 + 1e-4) / ((x[n, c] - m) ** 2 + 2 * s2 + 2e-4)
        expected[n, c] = x[n, c] / (1 + np.exp(-1 / energy))
    np.testing.assert_allclose(SimAM(3, unbiased=False)(x, weights={}), expected, rtol=1e-13)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_a_map_of_one_pixel_gives_numbers(backend, unbiased):
    """The official code divides 0 by 0. The square is 0, and so the coefficient is sigmoid(1/2), for any variance."""
    block = attzoo.create("simam", 3, backend=backend, unbiased=unbiased)
    x = np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32)
    expected = x / (1 + np.exp(-0.5))
    run = adapter(backend).run(block, [x], np.ones_like(x), training=False)
    np.testing.assert_allclose(run.output, expected, rtol=1e-6)
    np.testing.assert_allclose(run.input_gradients[0], np.full_like(x, 1 / (1 + np.exp(-0.5))), rtol=1e-6)


def test_large_float16_values_do_not_overflow():
    """Squares of values above 255 are not finite in float16. Those of +-1000 equal the variance: 1 / 4 + 1 / 2."""
    x = torch.tensor([1000.0, -1000.0]).repeat(1, 1, 50).half()
    coefficients = attzoo.create("simam", 1, backend="torch", unbiased=False).attention(x)
    torch.testing.assert_close(coefficients, torch.full_like(x, 0.75).sigmoid(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [0, -1e-4])
def test_lambda_must_be_positive(value):
    with pytest.raises(ValueError, match=rf"^e_lambda must be > 0, got {float(value)}$"):
        SimAM(4, value)


def test_a_graph_of_larger_maps_accepts_one_pixel():
    block = attzoo.create("simam", 3, backend="torch")
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    graph = torch.export.export(block, (torch.randn(2, 3, 5, 4),), dynamic_shapes=(sizes,)).module()
    x = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(graph(x), block(x))


def test_macs_are_0_because_there_are_no_linear_maps():
    assert SimAM(64).macs((2, 64, 10, 10)) == 0


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {"": ({"channels": 5}, {})}


# ---- published variants ----------------------------------------------------------------------------------------------


def simam(x, w, training, ddof=1):
    """Compute SimAM in plain torch: the variance with ddof, then the formula of the official code."""
    v, m = torch.var_mean(x, (2, 3), correction=ddof, keepdim=True)
    return x * ((x - m) ** 2 / (4 * v + 4e-4) + 0.5).sigmoid()


PUBLISHED = {
    "paper": Published(partial(simam, ddof=0), (), {}, ((MAP,), ((2, 3, 1, 1),))),
    "official": Published(simam, (), {}, ((MAP,), ((2, 3, 1, 2),))),
}
