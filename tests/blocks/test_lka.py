"""LKA and LSKA: numbers computed by hand, windows, refused kernel sizes, and the published variants."""

from functools import partial

import numpy as np
import pytest
import torch.nn.functional as F
from published import Published, arrays_of, assert_close, assert_reads_weights, pointwise
from torch import nn

import attzoo
from attzoo.blocks.lka.spec import LKA

TAPS = {7: (3, 3, 2), 11: (3, 5, 2), 23: (5, 7, 3), 35: (5, 11, 3), 41: (5, 13, 3), 53: (5, 17, 3)}   # of LSKA


def test_macs_are_those_of_all_convolutions():
    assert LKA(8).macs((2, 8, 6, 5)) == 2 * 6 * 5 * 8 * (5 * 5 + 7 * 7 + 8)
    assert LKA(8, 11, True).macs((2, 8, 6, 5)) == 2 * 6 * 5 * 8 * (2 * 3 + 2 * 5 + 8)


def test_coefficients_of_one_bright_pixel_are_computed_by_hand():
    """The dilated kernel has the taps 1 to 7 at a distance of 3, so pixel 12 reaches pixels 21, 18, ..., 3."""
    weights = {
        "local.weight": np.array([[[0.0, 0, 1, 0, 0]]]), "local.bias": np.zeros(1),
        "dilated.weight": np.arange(1.0, 8)[None, None], "dilated.bias": np.array([0.5]),
        "mix.weight": np.array([[2.0]]), "mix.bias": np.ones(1),
    }   # fmt: skip
    x, expected = np.zeros((1, 1, 25)), np.full(25, 2 * 0.5 + 1)
    x[0, 0, 12] = 1
    expected[[21, 18, 15, 12, 9, 6, 3]] += 2 * np.arange(1, 8)
    block = LKA(1, spatial_dims=1)
    assert_close(block.attention(x, weights=weights), expected)
    assert_close(block(x, weights=weights), x * expected)


@pytest.mark.parametrize("size", TAPS)
@pytest.mark.parametrize("dims", [1, 2])
def test_window_of_lska_has_the_size_of_its_kernel(size, dims):
    block = LKA(1, size, True, dims)
    weights = {name: np.ones(w.shape) * name.endswith(".weight") for name, w in block.weights.items()}
    x = np.zeros((1, 1, *(61,) * dims))
    x[(0, 0, *(30,) * dims)] = 1
    for axis in range(dims):
        reached = np.nonzero(block.attention(x, weights=weights)[0, 0])[axis]
        assert (reached.min(), reached.max()) == (30 - size // 2, 30 + size // 2)


@pytest.mark.parametrize("backend", ["numpy", "torch", "keras"])
def test_other_kernel_sizes_are_refused_with_the_published_ones(backend):
    with pytest.raises(ValueError, match=r"^kernel_size must be one of 21 with separable=False, got 7: separable"):
        attzoo.create("lka", 8, 7, backend=backend)
    known = "7, 11, 23, 35, 41, 53"
    with pytest.raises(ValueError, match=f"^kernel_size must be one of {known} with separable=True, got 9"):
        attzoo.create("lka", 8, 9, separable=True, backend=backend)


class Van(nn.Module):
    """The mathematics of AttentionModule in VAN-Classification, with its keys."""

    def __init__(self, channels):
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv_spatial = nn.Conv2d(channels, channels, 7, padding=9, groups=channels, dilation=3)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


class Lska(nn.Module):
    """The mathematics of LSKA in the code of its paper, with its keys."""

    def __init__(self, channels, taps):
        super().__init__()
        (local, dilated, dilation), half = taps, (taps[1] - 1) // 2 * taps[2]
        depthwise = partial(nn.Conv2d, channels, channels, groups=channels)
        self.conv0h = depthwise((1, local), padding=(0, local // 2))
        self.conv0v = depthwise((local, 1), padding=(local // 2, 0))
        self.conv_spatial_h = depthwise((1, dilated), padding=(0, half), dilation=dilation)
        self.conv_spatial_v = depthwise((dilated, 1), padding=(half, 0), dilation=dilation)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        h = self.conv_spatial_v(self.conv_spatial_h(self.conv0v(self.conv0h(x))))
        return x * self.conv1(h)


def test_official_weights_of_van_give_its_output():
    assert_reads_weights(Van(6), "official", "lka", {"channels": 6}, ((2, 6, 9, 9), (2, 6, 12, 5)))


@pytest.mark.parametrize("size", TAPS)
def test_official_weights_of_lska_give_its_output(size):
    arguments = {"channels": 6, "kernel_size": size, "separable": True}
    assert_reads_weights(Lska(6, TAPS[size]), "official", "lka", arguments, ((2, 6, 9, 9), (2, 6, 12, 5)))


def test_paper_equation_in_numpy():
    """Attention = Conv1x1(DW-D-Conv(DW-Conv(F))), output = Attention * F (VAN), tap by tap."""
    rng, block = np.random.default_rng(0), LKA(3)
    weights = {name: rng.normal(size=w.shape) for name, w in block.weights.items()}
    x = rng.normal(size=(2, 3, 8, 7))

    def depthwise(z, name, dilation):
        kernel, y = weights[f"{name}.weight"], np.tile(weights[f"{name}.bias"][:, None, None], (2, 1, 8, 7))
        half = kernel.shape[-1] // 2
        for i, j, di, dj in np.ndindex(8, 7, *kernel.shape[2:]):
            row, column = i + dilation * (di - half), j + dilation * (dj - half)
            if 0 <= row < 8 and 0 <= column < 7:
                y[:, :, i, j] += z[:, :, row, column] * kernel[:, 0, di, dj]
        return y

    h = depthwise(depthwise(x, "local", 1), "dilated", 3)
    a = np.einsum("nchw,kc->nkhw", h, weights["mix.weight"]) + weights["mix.bias"][:, None, None]
    np.testing.assert_allclose(block(x, weights=weights), x * a, rtol=1e-10, atol=1e-10)


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

MIX = {"mix.weight": (4, 4), "mix.bias": (4,)}
ARRAYS = {
    "": (
        {"channels": 4},
        {"local.weight": (4, 1, 5, 5), "local.bias": (4,), "dilated.weight": (4, 1, 7, 7), "dilated.bias": (4,)} | MIX,
    ),
    "separable": (
        {"channels": 4, "kernel_size": 11, "separable": True},
        {"local1.weight": (4, 1, 1, 3), "local2.weight": (4, 1, 3, 1), "dilated1.weight": (4, 1, 1, 5)}
        | {"dilated2.weight": (4, 1, 5, 1)} | MIX
        | dict.fromkeys(("local1.bias", "local2.bias", "dilated1.bias", "dilated2.bias"), (4,)),
    ),
}   # fmt: skip


# ---- published variants ----------------------------------------------------------------------------------------------


def lka(x, w, training, dilations):
    """Compute the depthwise convolutions of w in order, then the 1x1 convolution, and multiply."""
    h = x
    for name, dilation in dilations.items():
        kernel = w[f"{name}.weight"]
        padding = [dilation * (k // 2) for k in kernel.shape[2:]]
        h = F.conv2d(h, kernel, w[f"{name}.bias"], padding=padding, dilation=dilation, groups=len(kernel))
    return x * pointwise(h, w, "mix")


def published(dilations):
    return Published(partial(lka, dilations=dilations), arrays_of(*dilations, "mix"), {})


PUBLISHED = {"official": published({"local": 1, "dilated": 3})} | {
    f"lska-{size}": published({"local1": 1, "local2": 1, "dilated1": dilation, "dilated2": dilation})
    for size, (_, _, dilation) in TAPS.items()
}
