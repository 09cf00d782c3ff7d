"""GCT: numbers computed by hand, the mathematics of its sources, and its published variants."""

from math import tanh

import numpy as np
import pytest
import torch
from published import Published, assert_close

import attzoo
from attzoo.adapters import adapter
from attzoo.blocks.gct.spec import GCT

# two channels with the norms 5 and 1 of order 2, and 7 and 1 of order 1
X = np.array([[[3.0, -4.0], [0.0, 1.0]]])
TINY = 1e-30
WEIGHTS = {
    "embedding_weight": np.array([1.0, 7.0]),
    "gating_weight": np.array([0.5, -1.0]),
    "gating_bias": np.array([0.0, 0.25]),
}


def test_l2_worked_out_by_hand():
    """The embeddings are 5 and 7, whose root mean square is 37^1/2."""
    a = [1 + tanh(0.5 * 5 / 37**0.5), 1 + tanh(0.25 - 7 / 37**0.5)]
    block = GCT(2, epsilon=TINY)
    assert_close(block.attention(X, weights=WEIGHTS), a)
    assert_close(block(X, weights=WEIGHTS), [3 * a[0], -4 * a[0], 0, a[1]])


def test_l1_worked_out_by_hand():
    """The embeddings are 7 and 7, whose mean is 7."""
    a = [1 + tanh(0.5), 1 + tanh(0.25 - 1)]
    assert_close(GCT(2, mode="l1", epsilon=TINY).attention(X, weights=WEIGHTS), a)


def test_zeros_give_the_coefficient_of_the_bias_and_a_finite_gradient():
    block = attzoo.create("gct", 2, backend="torch")
    attzoo.load_weights(block, {name: array.astype(np.float32) for name, array in WEIGHTS.items()})
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    block.attention(x).sum().backward()
    assert x.grad.isfinite().all()
    weights = WEIGHTS | {"gating_weight": np.zeros(2)}
    assert_close(GCT(2, epsilon=TINY).attention(np.zeros((1, 2, 3)), weights=weights), [1, 1 + tanh(0.25)])


@pytest.mark.parametrize("backend", ["torch", "keras"])
@pytest.mark.parametrize("mode", ["l2", "l1"])
def test_gct_is_initially_the_identity(mode, backend):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    block = attzoo.create("gct", 5, backend=backend, mode=mode)
    np.testing.assert_array_equal(adapter(backend).forward(block, [x], training=False), x)


@pytest.mark.parametrize("epsilon", [0, -1e-5])
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(ValueError, match=r"^epsilon must be > 0, got "):
        GCT(8, epsilon=epsilon)


def test_formula_of_the_paper():
    """Section 3.1: C^1/2 s / |s| of the embeddings s, in NumPy, without epsilon, which the code adds elsewhere."""
    rng = np.random.default_rng(0)
    x, alpha, gamma, beta = rng.normal(size=(2, 6, 3, 5)), *rng.normal(size=(3, 6))
    s = alpha * np.linalg.norm(x.reshape(2, 6, -1), axis=2)
    hat = 6**0.5 * s / np.linalg.norm(s, axis=1, keepdims=True)
    expected = x * (1 + np.tanh(gamma * hat + beta))[:, :, None, None]
    got = GCT(6, epsilon=TINY)(x, weights=dict(zip(CANONICAL, (alpha, gamma, beta), strict=True)))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("mode", ["l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_official_weights_give_the_output_of_the_official_mathematics(mode, dtype):
    state = {name: torch.randn(1, 7, 1, 1, dtype=dtype) for name in NAMES}
    block = attzoo.create("gct", 7, backend="torch", mode=mode, dtype=dtype)
    attzoo.load_weights(block, {f"gct1.{name}": tensor for name, tensor in state.items()}, source="official")
    x = torch.randn(3, 7, 4, 5, dtype=dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(block(x), gct(mode, NAMES)(x, state, False), rtol=tolerance, atol=tolerance)
    exported = attzoo.export_weights(block, target="official")
    assert exported.keys() == state.keys()
    for name, array in exported.items():
        np.testing.assert_array_equal(array, state[name])


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

CANONICAL = ("embedding_weight", "gating_weight", "gating_bias")
ARRAYS = {"": ({"channels": 5}, dict.fromkeys(CANONICAL, (5,)))}


# ---- published variants ----------------------------------------------------------------------------------------------


def gct(mode, names):
    """Return the function of the authors' code in a mode, for arrays with these names of alpha, gamma and beta."""

    def compute(x, w, training):
        alpha, gamma, beta = (w[name].reshape(1, -1, 1, 1) for name in names)
        if mode == "l2":
            e = alpha * (torch.einsum("nchw,nchw->nc", x, x) + 1e-5)[:, :, None, None] ** 0.5
            scale = gamma * ((e**2).sum(1, keepdim=True) / e.shape[1] + 1e-5) ** -0.5
        else:
            e = alpha * x.abs().flatten(2).sum(2)[:, :, None, None]
            scale = gamma / (e.abs().sum(1, keepdim=True) / e.shape[1] + 1e-5)
        return x * (1 + torch.tanh(e * scale + beta))

    return compute


NAMES = ("alpha", "gamma", "beta")   # of the authors' code
PUBLISHED = {
    "official": Published(gct("l2", CANONICAL), CANONICAL, {}),
    "official-l1": Published(gct("l1", CANONICAL), CANONICAL, {}),
}
