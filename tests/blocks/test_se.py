"""SE: numbers worked out by hand, and its published variants."""

from math import exp, log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import FLOOR_8, FLOOR_16, SQUEEZE, Published, arrays_of, assert_close, perceptron, pointwise, widths

import attzoo
from attzoo.archive import pack
from attzoo.blocks.se.spec import SE


def test_worked_out_by_hand():
    """Means 1 and 3, one hidden unit 3 - 1 = 2, logits 0 and log 3, coefficients 1/2 and 3/4."""
    x = np.array([[0.0, 2.0], [3.0, 3.0]])[None]
    weights = {"squeeze.weight": np.array([[-1.0, 1.0]]), "excite.weight": np.array([[0.0], [log(3) / 2]])}
    assert_close(SE(2, bias=False)(x, weights=weights), [0, 1, 9 / 4, 9 / 4])


@pytest.mark.parametrize(("act", "hidden"), [("silu", -2 / (1 + exp(2))), ("hard_swish", -1 / 3)])
def test_activations_worked_out_by_hand(act, hidden):
    """Means 1 and 3, one hidden unit 1 - 3 = -2 before the activation, coefficients of 1 / (1 + exp(-hidden))."""
    x = np.array([[1.0, 1.0], [3.0, 3.0]])[None]
    weights = {"squeeze.weight": np.array([[1.0, -1.0]]), "excite.weight": np.array([[1.0], [0.0]])}
    a = 1 / (1 + exp(-hidden))
    assert_close(SE(2, bias=False, act=act)(x, weights=weights), [a, a, 3 / 2, 3 / 2])


def test_width_is_never_zero():
    assert SE(8).reduced_channels == 1
    assert SE(64).reduced_channels == 4
    assert SE(64, reduced_channels=5).reduced_channels == 5


@pytest.mark.parametrize(("channels", "macs"), [(64, 2 * 64 * 4), (256, 2 * 256 * 16)])
def test_macs_are_those_of_both_matrices(channels, macs):
    assert SE(channels).macs((1, channels, 56, 56)) == macs
    assert SE(channels).macs((3, channels, 7)) == 3 * macs


def test_files_from_before_the_activation_was_an_argument_open_as_relu(tmp_path):
    block = attzoo.create("se", 8, backend="torch", reduction=2)
    config = {name: value for name, value in block.spec.config().items() if name != "act"}
    file = tmp_path / "old.safetensors"
    file.write_bytes(pack(attzoo.weights(block), {"format": 1, "block": "se", "config": config}))
    assert attzoo.load(file, backend="torch").spec == block.spec


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


def se_of_efficientnet(x, w, training):
    """Compute SE with SiLU."""
    h = F.silu(pointwise(F.adaptive_avg_pool2d(x, 1), w, "squeeze"))
    return torch.sigmoid(pointwise(h, w, "excite")) * x


def se_of_mobilenet_v3(x, w, training):
    """Compute SE with a hard sigmoid."""
    z = perceptron(F.adaptive_avg_pool2d(x, 1), w)
    return (z + 3).clamp(0, 6) / 6 * x


BIASED = arrays_of("squeeze", "excite")
UNBIASED = arrays_of("squeeze", "excite", weight_names=("weight",))
FLOOR_2 = (2, 4, 8, 12, 20, 32, 36, 48, 50, 100, 150, 256)
EIGHTS_4 = (8, 8, 8, 8, 16, 16, 24, 24, 24, 48, 72, 128)
TIMM = (8, 8, 8, 8, 8, 8, 8, 8, 8, 16, 16, 32)
MMPRETRAIN = (8, 8, 8, 8, 8, 8, 8, 8, 8, 16, 24, 32)
OF_286 = {(286,): {"width": 16}}   # mmpretrain rounds 286 // 16 = 17 to 16; 286 / 16 = 17.875 would give 24
FLOOR_24 = (1, 1, 1, 1, 1, 2, 3, 4, 4, 8, 12, 21)
ROUND_24 = (1, 1, 1, 1, 2, 3, 3, 4, 4, 8, 12, 21)
KIMM = (1, 2, 4, 6, 10, 16, 18, 24, 25, 50, 75, 128)
PUBLISHED = {
    "paper": Published(se_of_linear_layers, UNBIASED, widths(FLOOR_16)),
    "official": Published(se_of_convolutions, BIASED, widths(FLOOR_16)),
    "timm": Published(se_of_convolutions, BIASED, widths(TIMM)),
    "torchvision": Published(se_of_mobilenet_v3, BIASED, widths(EIGHTS_4)),
    "torchvision-efficientnet": Published(se_of_efficientnet, BIASED, widths(FLOOR_24)),
    "torchvision-regnet": Published(se_of_convolutions, BIASED, widths(KIMM)),
    "timm-efficientnet": Published(se_of_efficientnet, BIASED, widths(ROUND_24)),
    "timm-mobilenet": Published(se_of_mobilenet_v3, BIASED, widths(EIGHTS_4)),
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
