"""EMA: the official code's mathematics, its refusals, and its published variant."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import Published, arrays_of, assert_official_weights_give

import attzoo
from attzoo.blocks.ema_attention.spec import EMAAttention

LAYERS = ("pointwise", "norm", "conv")


def sigmoid(z):
    """Return the logistic function of z."""
    return 1 / (1 + np.exp(-z))


def softmax(z):
    """Return the softmax of a vector."""
    return np.exp(z) / np.exp(z).sum()


@pytest.mark.parametrize("space", [(6,), (3, 4), (2, 3, 2)])
def test_output_equals_the_formula_at_each_position(space):
    """Two groups of 3 channels; the convolution is a sum over shifted positions."""
    rng, dims = np.random.default_rng(0), len(space)
    block = EMAAttention(6, 2, dims)
    w = {name: rng.normal(size=weight.shape) for name, weight in block.weights.items()}
    x, expected = rng.normal(size=(2, 6, *space)), np.empty((2, 6, *space))
    for n, group in np.ndindex(2, 2):
        g = x[n, 3 * group : 3 * group + 3]
        u, v = np.empty_like(g), np.empty_like(g)
        padded = np.pad(g, [(0, 0), *[(1, 1)] * dims])
        for i in np.ndindex(space):
            u[(slice(None), *i)] = g[(slice(None), *i)]
            for axis in range(dims):
                section = g.take(i[axis], axis=1 + axis).reshape(3, -1).mean(1)   # all pixels with this coordinate
                u[(slice(None), *i)] *= sigmoid(w["pointwise.weight"] @ section + w["pointwise.bias"])
            window = padded[(slice(None), *(slice(k, k + 3) for k in i))]
            v[(slice(None), *i)] = [(w["conv.weight"][o] * window).sum() + w["conv.bias"][o] for o in range(3)]
        for k in range(3):
            u[k] = (u[k] - u[k].mean()) / np.sqrt(u[k].var() + 1e-5) * w["norm.weight"][k] + w["norm.bias"][k]
        first, second = (softmax(a.reshape(3, -1).mean(1)) for a in (u, v))
        q = np.tensordot(first, v, 1) + np.tensordot(second, u, 1)
        expected[n, 3 * group : 3 * group + 3] = g * sigmoid(q)
        np.testing.assert_allclose(first, softmax(w["norm.bias"]), rtol=1e-10)   # as the card says
    np.testing.assert_allclose(block(x, weights=w), expected, rtol=1e-10, atol=1e-12)


def official(x, state, groups):
    """Compute the official EMA for x (N, C, H, W) with the arrays of its state dict."""
    n, c, h, w = x.shape
    g = x.reshape(n * groups, c // groups, h, w)
    rows, columns = g.mean(3, keepdim=True), g.mean(2)[..., None]
    strips = F.conv2d(torch.cat([rows, columns], 2), state["conv1x1.weight"], state["conv1x1.bias"])
    gated = g * strips[:, :, :h].sigmoid() * strips[:, :, h:].mT.sigmoid()
    first = F.group_norm(gated, c // groups, state["gn.weight"], state["gn.bias"])
    second = F.conv2d(g, state["conv3x3.weight"], state["conv3x3.bias"], padding=1)
    weights = (first.mean((2, 3)).softmax(1)[:, :, None, None] * second).sum(1, keepdim=True)
    weights = weights + (second.mean((2, 3)).softmax(1)[:, :, None, None] * first).sum(1, keepdim=True)
    return (g * weights.sigmoid()).reshape(n, c, h, w)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_official_weights_give_the_output_of_the_official_code(dtype, tolerance):
    rng = torch.Generator().manual_seed(0)
    shapes = {"conv1x1.weight": (2, 2, 1, 1), "conv1x1.bias": (2,), "gn.weight": (2,), "gn.bias": (2,),
              "conv3x3.weight": (2, 2, 3, 3), "conv3x3.bias": (2,)}   # fmt: skip
    state = {key: torch.randn(shape, generator=rng, dtype=dtype) for key, shape in shapes.items()}
    x = torch.randn(2, 64, 5, 7, generator=rng, dtype=dtype)
    assert_official_weights_give("ema_attention", x, state, official(x, state, 32), tolerance)


@pytest.mark.parametrize("backend", ["numpy", "torch", "keras"])
@pytest.mark.parametrize(("channels", "options", "message"), [
    (8, {}, "channels must be a multiple of groups = 32, got 8: give 32 channels, or groups=1 or 2 or 4 or 8"),
    (48, {"groups": 32}, "channels must be a multiple of groups = 32, got 48: give 32 or 64 channels, "
                         "or groups=1 or 2 or 3 or 4 or 6 or 8 or 12 or 16 or 24 or 48"),
])   # fmt: skip
def test_channels_that_do_not_divide_are_refused_with_those_that_do(channels, options, message, backend):
    """The official code raises an AssertionError without a message for 8 channels, and an error of reshape for 48."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attzoo.create("ema_attention", channels, backend=backend, **options)


def test_the_official_name_of_groups_is_proposed():
    with pytest.raises(TypeError, match="takes no argument 'factor'; did you mean 'groups'"):
        attzoo.create("ema_attention", 64, backend="torch", factor=8)


def test_macs_are_those_of_the_convolutions_and_weighted_sums():
    assert EMAAttention(64).macs((3, 64, 5, 7)) == 3 * 32 * (2 * 2 * (5 + 7) + 2 * 2 * 9 * 35 + 2 * 2 * 35)


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

SHAPES = {"pointwise.weight": (2, 2), "pointwise.bias": (2,), "norm.weight": (2,), "norm.bias": (2,), "conv.bias": (2,)}
ARRAYS = {
    "": ({"channels": 64}, SHAPES | {"conv.weight": (2, 2, 3, 3)}),
    "3d": ({"channels": 64, "spatial_dims": 3}, SHAPES | {"conv.weight": (2, 2, 3, 3, 3)}),
}


# ---- published variants ----------------------------------------------------------------------------------------------


def of_32_groups(x, w, training):
    """Compute EMA with 32 groups."""
    names = {"pointwise": "conv1x1", "norm": "gn", "conv": "conv3x3"}
    state = {f"{names[name.partition('.')[0]]}.{name.partition('.')[2]}": array for name, array in w.items()}
    return official(x, state | {"conv1x1.weight": state["conv1x1.weight"][..., None, None]}, 32)


PUBLISHED = {
    "official": Published(of_32_groups, arrays_of(*LAYERS), {(64,): {"width": 2}}, (((2, 64, 4, 5),),)),
}
