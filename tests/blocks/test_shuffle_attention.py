"""Shuffle attention: the official code's mathematics, its refusals, and its published variant."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import Published, assert_close, assert_official_weights_give

import attzoo
from attzoo.blocks.shuffle_attention.spec import ShuffleAttention


def sigmoid(z):
    """Return the logistic function of z."""
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("space", [(7,), (3, 4), (2, 3, 2)])
def test_output_equals_the_formula_of_the_paper(space):
    """Section 3 of the paper at each position of each channel, with 3 groups of 2 + 2 channels."""
    rng, c, groups, d = np.random.default_rng(0), 12, 3, 2
    block = ShuffleAttention(c, groups)
    w = {name: rng.normal(size=weight.shape) for name, weight in block.weights.items()}
    x, z = rng.normal(size=(2, c, *space)), np.empty((2, c, *space))
    for n, g, k in np.ndindex(2, groups, d):
        first, second = 2 * d * g + k, 2 * d * g + d + k
        a = sigmoid(w["channel_weight"][k] * x[n, first].mean() + w["channel_bias"][k])
        z[n, first] = x[n, first] * a
        q = (x[n, second] - x[n, second].mean()) / np.sqrt(x[n, second].var() + 1e-5)
        q = q * w["norm.weight"][k] + w["norm.bias"][k]
        z[n, second] = x[n, second] * sigmoid(w["position_weight"][k] * q + w["position_bias"][k])
    order = [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
    np.testing.assert_allclose(block(x, weights=w), z[:, order], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(block.attention(x, weights=w) * x, z, rtol=1e-12, atol=1e-14)


def test_initial_coefficients_are_sigmoid_of_1():
    """Officially the weights of both halves are initially 0, and their biases 1."""
    block = attzoo.create("shuffle_attention", 8, groups=2, backend="torch")
    assert_close(block.attention(torch.randn(1, 8, 3, 3, dtype=torch.float32)).detach().double().numpy().round(6),
                 np.full((1, 8, 3, 3), round(sigmoid(1.0), 6)))   # fmt: skip


def official(x, state, groups):
    """Compute the official sa_layer for x (N, C, H, W) with the arrays of its state dict."""
    n, c, h, w = x.shape
    folded = x.reshape(n * groups, c // groups, h, w)
    first, second = folded.chunk(2, 1)
    first = first * torch.sigmoid(state["cweight"] * first.mean((2, 3), keepdim=True) + state["cbias"])
    normed = F.group_norm(second, len(state["gn.weight"]), state["gn.weight"], state["gn.bias"])
    second = second * torch.sigmoid(state["sweight"] * normed + state["sbias"])
    return F.channel_shuffle(torch.cat([first, second], 1).reshape(n, c, h, w), 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_official_weights_give_the_output_of_the_official_code(dtype, tolerance):
    rng = torch.Generator().manual_seed(0)
    state = {key: torch.randn(1, 2, 1, 1, generator=rng, dtype=dtype)
             for key in ("cweight", "cbias", "sweight", "sbias")}   # fmt: skip
    state |= {key: torch.randn(2, generator=rng, dtype=dtype) for key in ("gn.weight", "gn.bias")}
    x = torch.randn(2, 256, 3, 5, generator=rng, dtype=dtype)
    assert_official_weights_give("shuffle_attention", x, state, official(x, state, 64), tolerance)


@pytest.mark.parametrize("backend", ["numpy", "torch", "keras"])
@pytest.mark.parametrize(("channels", "options", "message"), [
    (64, {}, "channels must be a multiple of 2 * groups = 128, got 64: give 128 channels, "
             "or groups=1 or 2 or 4 or 8 or 16 or 32"),
    (192, {"groups": 64}, "channels must be a multiple of 2 * groups = 128, got 192: give 128 or 256 channels, "
                          "or groups=1 or 2 or 3 or 4 or 6 or 8 or 12 or 16 or 24 or 32 or 48 or 96"),
    (7, {"groups": 1}, "channels must be a multiple of 2 * groups = 2, got 7: give 6 or 8 channels"),
])   # fmt: skip
def test_channels_that_do_not_divide_are_refused_with_those_that_do(channels, options, message, backend):
    """The official code divides by zero for 64 channels, and for 192 computes halves of 2 and 1 channels."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attzoo.create("shuffle_attention", channels, backend=backend, **options)


def test_counts_of_the_error_are_accepted():
    for channels, groups in ((128, 64), (256, 64), (6, 1), (8, 1), *((192, g) for g in (1, 2, 3, 4, 6, 8, 12, 96))):
        assert ShuffleAttention(channels, groups).channels == channels


def test_attach_to_a_layer_with_too_few_channels_names_the_layer():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1))
    with pytest.raises(ValueError, match=r"^shuffle_attention at '0': channels must be a multiple of 2 "):
        attzoo.attach(net, "shuffle_attention", after="0")
    attzoo.attach(net, "shuffle_attention", after="0", groups=8)
    assert net(torch.ones(1, 3, 4, 4)).shape == (1, 64, 4, 4)


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

VECTORS = ("channel_weight", "channel_bias", "position_weight", "position_bias", "norm.weight", "norm.bias")
ARRAYS = {"": ({"channels": 256}, dict.fromkeys(VECTORS, (2,)))}


# ---- published variants ----------------------------------------------------------------------------------------------


def shuffled(x, w, training):
    """Compute shuffle attention with 64 groups."""
    keys = dict(zip(VECTORS, ("cweight", "cbias", "sweight", "sbias"), strict=False))
    state = {key: w[name].view(1, -1, 1, 1) for name, key in keys.items()}
    return official(x, state | {"gn.weight": w["norm.weight"], "gn.bias": w["norm.bias"]}, 64)


PUBLISHED = {
    "official": Published(shuffled, VECTORS, {(256,): {"width": 2, "groups": 64}}, (((2, 256, 3, 4),),)),
}
