"""BAM: numbers computed by hand, maps that are not square, the paper's equations, and its published variants."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import (
    FLOOR_16,
    Published,
    arrays_of,
    assert_close,
    assert_reads_weights,
    batch_norm,
    norm_shapes,
    norms_of,
    pointwise,
    widths,
)
from torch import nn

import attzoo
from attzoo.blocks.bam.spec import BAM

PRODUCT, SUM = "one_plus_sigmoid_of_product", "one_plus_sigmoid_of_sum"


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_macs_are_those_of_all_six_layers():
    block = BAM(8, reduced_channels=2)
    assert block.macs((3, 8, 5, 4)) == 3 * (2 * 8 * 2 + 5 * 4 * (8 * 2 + 2 * 9 * 2 * 2 + 2))


@pytest.mark.parametrize(("combination", "exponents"), [(PRODUCT, (-2.5, 0.0)), (SUM, (4.5, 5.0))])
def test_output_equals_numbers_computed_by_hand(combination, exponents):
    """The mean of 1 and 3 is 2, so c = 2 * 2 + 1 = 5. The second kernel moves 1 to the right: p = [0, 1] / 2 - 1/2."""
    weights = {
        "squeeze.weight": [[1]], "squeeze.bias": [0], "excite.weight": [[2]], "excite.bias": [1],
        "reduce.weight": [[1]], "reduce.bias": [0], "score.weight": [[0.5]], "score.bias": [-0.5],
        "context1.weight": [[[0, 1, 0]]], "context1.bias": [0], "context2.weight": [[[1, 0, 0]]], "context2.bias": [0],
    }   # fmt: skip
    weights = {name: np.array(values, float) for name, values in weights.items()}
    block, x = BAM(1, dilation=1, combination=combination, norm=False, spatial_dims=1), np.array([[[1.0, 3.0]]])
    coefficients = block.attention(x, weights=weights)
    assert_close(coefficients["channel"], 5)
    assert_close(coefficients["position"], [-0.5, 0])
    assert_close(block(x, weights=weights), [1 + sigmoid(exponents[0]), 3 * (1 + sigmoid(exponents[1]))])


def correlate(x, kernel, bias, dilation):
    """Return the zero-padded correlation of x (N, I, H, W), position by position, in NumPy."""
    n, _, height, width = x.shape
    y = np.tile(bias[:, None, None], (n, 1, height, width)).astype(float)
    for i, j, di, dj in np.ndindex(height, width, 3, 3):
        row, column = i + dilation * (di - 1), j + dilation * (dj - 1)
        if 0 <= row < height and 0 <= column < width:
            y[:, :, i, j] += x[:, :, row, column] @ kernel[:, :, di, dj].T
    return y


def test_paper_variant_equals_the_equations_of_the_paper():
    """Eq. 1 to 4: x + x * sigmoid(BN(MLP(avg x)) + BN(f3(f2(f1(f0(x)))))), with batch norms in training."""
    rng, block = np.random.default_rng(0), attzoo.create("bam", 32, backend="numpy", variant="paper")
    x, w = rng.normal(size=(3, 32, 9, 11)), {}
    for name, weight in block.weights.items():
        w[name] = rng.uniform(0.5, 2, weight.shape) if name.endswith("var") else rng.normal(size=weight.shape)

    def norm(z, name):
        axes, shape = (0, *range(2, z.ndim)), (-1, *(1,) * (z.ndim - 2))
        z = (z - z.mean(axes, keepdims=True)) / np.sqrt(z.var(axes, keepdims=True) + 1e-5)
        return z * w[f"{name}.weight"].reshape(shape) + w[f"{name}.bias"].reshape(shape)

    hidden = np.maximum(x.mean((2, 3)) @ w["squeeze.weight"].T + w["squeeze.bias"], 0)
    channel = norm(hidden @ w["excite.weight"].T + w["excite.bias"], "excite_norm")
    h = np.maximum(np.einsum("nchw,rc->nrhw", x, w["reduce.weight"]) + w["reduce.bias"][:, None, None], 0)
    for name in ("context1", "context2"):
        h = np.maximum(correlate(h, w[f"{name}.weight"], w[f"{name}.bias"], 4), 0)
    score = np.einsum("nrhw,kr->nkhw", h, w["score.weight"]) + w["score.bias"]
    expected = x + x * sigmoid(channel[:, :, None, None] + norm(score, "score_norm"))
    np.testing.assert_allclose(block(x, weights=w, training=True), expected, rtol=1e-10, atol=1e-10)


class Official(nn.Module):
    """The mathematics of BAM in Jongchan/attention-module, with its keys, and the mean over maps of any size."""

    def __init__(self, channels, reduction=16, dilation=4):
        super().__init__()
        width = channels // reduction
        self.channel_att, self.spatial_att = nn.Module(), nn.Module()
        self.channel_att.gate_c = nn.ModuleDict({
            "gate_c_fc_0": nn.Linear(channels, width), "gate_c_bn_1": nn.BatchNorm1d(width),
            "gate_c_fc_final": nn.Linear(width, channels),
        })   # fmt: skip
        context = partial(nn.Conv2d, width, width, 3, padding=dilation, dilation=dilation)
        self.spatial_att.gate_s = nn.ModuleDict({
            "gate_s_conv_reduce0": nn.Conv2d(channels, width, 1), "gate_s_bn_reduce0": nn.BatchNorm2d(width),
            "gate_s_conv_di_0": context(), "gate_s_bn_di_0": nn.BatchNorm2d(width),
            "gate_s_conv_di_1": context(), "gate_s_bn_di_1": nn.BatchNorm2d(width),
            "gate_s_conv_final": nn.Conv2d(width, 1, 1),
        })   # fmt: skip

    def forward(self, x):
        c, p = x.mean((2, 3)), x
        for name, layer in self.channel_att.gate_c.items():
            c = layer(c).relu() if "_bn_" in name else layer(c)
        for name, layer in self.spatial_att.gate_s.items():
            p = layer(p).relu() if "_bn_" in name else layer(p)
        return x * (1 + torch.sigmoid(c[:, :, None, None] * p))


def test_official_weights_give_the_official_output_also_on_maps_that_are_not_square():
    """The official pooling has a square window of the height, and so accepts only squares."""
    shapes = ((4, 32, 9, 9), (4, 32, 5, 12), (4, 32, 11, 3))
    assert_reads_weights(Official(32), "official", "bam", {"channels": 32}, shapes)


def test_official_weights_are_refused_by_a_block_with_the_norms_of_the_paper():
    block = attzoo.create("bam", 32, backend="torch", variant="paper")
    with pytest.raises(ValueError, match="expected only arrays of the block"):
        attzoo.load_weights(block, Official(32).state_dict(), source="official")


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

KERNELS = {"context1.weight": (2, 2, 3, 3), "context2.weight": (2, 2, 3, 3)}
LAYERS = (
    {"squeeze.weight": (2, 32), "squeeze.bias": (2,), "excite.weight": (32, 2), "excite.bias": (32,)}
    | {"reduce.weight": (2, 32), "reduce.bias": (2,), "context1.bias": (2,), "context2.bias": (2,)}
    | {"score.weight": (1, 2), "score.bias": (1,)}
)
HIDDEN = ("squeeze_norm", "reduce_norm", "context1_norm", "context2_norm")
ARRAYS = {
    "": ({"channels": 32}, LAYERS | KERNELS | {k: v for n in HIDDEN for k, v in norm_shapes(n, 2).items()}),
    "output": (
        {"channels": 32, "norm_after": "output"},
        LAYERS | KERNELS | norm_shapes("excite_norm", 32) | norm_shapes("score_norm", 1),
    ),
}


# ---- published variants ----------------------------------------------------------------------------------------------


def bam(x, w, training, is_product):
    """Compute BAM with a batch norm after every layer for which w has one."""

    def layer(z, name):
        padding = {"padding": 4, "dilation": 4} if name.startswith("context") else None
        z = F.conv2d(z, w[f"{name}.weight"], w[f"{name}.bias"], **padding) if padding else pointwise(z, w, name)
        return batch_norm(z, w, f"{name}_norm", training) if f"{name}_norm.mean" in w else z

    c = layer(layer(x.mean((2, 3), keepdim=True), "squeeze").relu(), "excite")
    h = layer(layer(layer(x, "reduce").relu(), "context1").relu(), "context2").relu()
    p = layer(h, "score")
    return x * (1 + torch.sigmoid(c * p if is_product else c + p))


BIASED = arrays_of("squeeze", "excite", "reduce", "context1", "context2", "score")
PUBLISHED = {
    "official": Published(partial(bam, is_product=True), BIASED + norms_of(*HIDDEN), widths(FLOOR_16)),
    "paper": Published(
        partial(bam, is_product=False), BIASED + norms_of("excite_norm", "score_norm"), widths(FLOOR_16)
    ),
}
