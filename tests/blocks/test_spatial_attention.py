"""Spatial attention: numbers worked out by hand, and its published variants."""

from functools import partial
from math import log

import numpy as np
import pytest
from published import Published, arrays_of, assert_close, norm_shapes, norms_of, spatial_gate

from attzoo.blocks.spatial_attention.spec import SpatialAttention


def test_worked_out_by_hand():
    """A kernel with weights 1 for the mean and 2 for the maximum of the pixel itself: logits 1 + 2 * 2 and 0 + 0."""
    x = np.array([[2.0, 0.0], [0.0, 0.0]])[None]
    kernel = np.zeros((1, 2, 3))
    kernel[0, :, 1] = 1, 2
    actual = SpatialAttention(2, 3, spatial_dims=1).attention(x, weights={"conv.weight": kernel})
    assert_close(actual, [1 / (1 + np.exp(-5)), 1 / 2])


def test_kernel_is_not_flipped():
    """The first weight is for the previous pixel, which is 0 outside."""
    kernel = np.zeros((1, 2, 3))
    kernel[0, 0, 0] = log(3)
    actual = SpatialAttention(1, 3, spatial_dims=1).attention(np.ones((1, 1, 2)), weights={"conv.weight": kernel})
    assert_close(actual, [1 / 2, 3 / 4])


@pytest.mark.parametrize("channels", [64, 256])
def test_macs_are_those_of_the_convolution(channels):
    assert SpatialAttention(channels).macs((1, channels, 10, 10)) == 98 * 100


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {
    "": ({"channels": 5}, {"conv.weight": (1, 2, 7, 7)}),
    "3d": (
        {"channels": 5, "kernel_size": 3, "norm": True, "spatial_dims": 3},
        {"conv.weight": (1, 2, 3, 3, 3)} | norm_shapes("norm", 1),
    ),
}


# ---- published variants ----------------------------------------------------------------------------------------------

PLAIN = arrays_of("conv", weight_names=("weight",))
NORMED = PLAIN + norms_of("norm")
PUBLISHED = {
    "paper": Published(partial(spatial_gate, norm=False), PLAIN, {}),
    "official": Published(partial(spatial_gate, max_first=True), NORMED, {}),
    "timm": Published(spatial_gate, NORMED, {}),
    "luuuyi": Published(partial(spatial_gate, norm=False), PLAIN, {}),
    "kobiso": Published(partial(spatial_gate, norm=False), PLAIN, {}),
}
