"""SE: numbers worked out by hand, and its published variants."""

from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import FLOOR_8, FLOOR_16, SQUEEZE, Published, arrays_of, assert_close, perceptron, widths

from attzoo.blocks.se.spec import SE


def test_worked_out_by_hand():
    """Means 1 and 3, one hidden unit 3 - 1 = 2, logits 0 and log 3, coefficients 1/2 and 3/4."""
    x = np.array([[0.0, 2.0], [3.0, 3.0]])[None]
    weights = {"squeeze.weight": np.array([[-1.0, 1.0]]), "excite.weight": np.array([[0.0], [log(3) / 2]])}
    assert_close(SE(2, bias=False)(x, weights=weights), [0, 1, 9 / 4, 9 / 4])


def test_width_is_never_zero():
    assert SE(8).reduced_channels == 1
    assert SE(64).reduced_channels == 4
    assert SE(64, reduced_channels=5).reduced_channels == 5


@pytest.mark.parametrize(("channels", "macs"), [(64, 2 * 64 * 4), (256, 2 * 256 * 16)])
def test_macs_are_those_of_both_matrices(channels, macs):
    assert SE(channels).macs((1, channels, 56, 56)) == macs
    assert SE(channels).macs((3, channels, 7)) == 3 * macs


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {
    "": ({"channels": 32}, SQUEEZE),
    "free": (
        {"channels": 8, "reduced_channels": 3, "bias": False}, {"squeeze.weight": (3, 8), "excite.weight": (8, 3)}
    ),
}   # fmt: skip


# ---- published variants ----------------------------------------------------------------------------------------------


def se_of_convolutions(x, w, training):
    """Compute SE with 1 x 1 convolutions."""
    return x * torch.sigmoid(perceptron(x.mean((2, 3), keepdim=True), w))


def se_of_linear_layers(x, w, training):
    """Compute SE with linear layers."""
    n, c = x.shape[:2]
    h = F.linear(F.adaptive_avg_pool2d(x, 1).view(n, c), w["squeeze.weight"], w.get("squeeze.bias"))
    return x * torch.sigmoid(F.linear(h.relu(), w["excite.weight"], w.get("excite.bias"))).view(n, c, 1, 1)


def se_of_mobilenet_v3(x, w, training):
    """Compute SE with a hard sigmoid."""
    z = perceptron(F.adaptive_avg_pool2d(x, 1), w)
    return (z + 3).clamp(0, 6) / 6 * x


BIASED = arrays_of("squeeze", "excite")
UNBIASED = arrays_of("squeeze", "excite", leaves=("weight",))
FLOOR_2 = (2, 4, 8, 12, 20, 32, 36, 48, 50, 100, 150, 256)
EIGHTS_4 = (8, 8, 8, 8, 16, 16, 24, 24, 24, 48, 72, 128)
TIMM = (8, 8, 8, 8, 8, 8, 8, 8, 8, 16, 16, 32)
MMPRETRAIN = (8, 8, 8, 8, 8, 8, 8, 8, 8, 16, 24, 32)
OF_286 = {(286,): {"width": 16}}   # mmpretrain rounds 286 // 16 = 17 to 16; 286 / 16 = 17.875 would give 24
KIMM = (1, 2, 4, 6, 10, 16, 18, 24, 25, 50, 75, 128)
PUBLISHED = {
    "paper": Published(se_of_linear_layers, UNBIASED, widths(FLOOR_16)),
    "official": Published(se_of_convolutions, BIASED, widths(FLOOR_16)),
    "timm": Published(se_of_convolutions, BIASED, widths(TIMM)),
    "torchvision": Published(se_of_mobilenet_v3, BIASED, widths(EIGHTS_4)),
    "moskomule": Published(se_of_linear_layers, UNBIASED, widths(FLOOR_16)),
    "mmpretrain": Published(se_of_convolutions, BIASED, widths(MMPRETRAIN) | OF_286),
    "monai": Published(se_of_linear_layers, BIASED, widths(FLOOR_2)),
    "ai-med": Published(se_of_linear_layers, BIASED, widths(FLOOR_2)),
    "fvcore": Published(se_of_convolutions, BIASED, widths(FLOOR_2)),
    "kecam": Published(se_of_convolutions, BIASED, widths(EIGHTS_4)),
    "kimm": Published(se_of_convolutions, BIASED, widths(KIMM)),
    "kobiso": Published(se_of_linear_layers, BIASED, widths(FLOOR_8)),
    "titu1994": Published(se_of_linear_layers, UNBIASED, widths(FLOOR_16)),
}
