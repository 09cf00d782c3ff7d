"""eSE: numbers computed by hand, the mathematics of its sources, and its published variants."""

from math import exp

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import Published, arrays_of, assert_close

import attzoo
from attzoo.blocks.ese.spec import ESE


def test_worked_out_by_hand():
    """The means are 1 and -2. The matrix swaps them and the bias adds 1: -1 and 2, whose hard sigmoids are 1/3, 5/6."""
    x = np.array([[0.0, 2.0], [-5.0, 1.0]])[None]
    weights = {"excite.weight": np.array([[0.0, 1.0], [1.0, 0.0]]), "excite.bias": np.array([1.0, 1.0])}
    assert_close(ESE(2).attention(x, weights=weights), [1 / 3, 5 / 6])
    assert_close(ESE(2)(x, weights=weights), [0, 2 / 3, -25 / 6, 5 / 6])
    sigmoids = [1 / (1 + exp(1)), 1 / (1 + exp(-2))]
    assert_close(ESE(2, gate="sigmoid").attention(x, weights=weights), sigmoids)


def test_hard_sigmoid_is_0_and_1_beyond_3():
    x = np.array([-3.0, 3.0, 2.9]).reshape(1, 3, 1)
    weights = {"excite.weight": np.eye(3)}
    assert_close(ESE(3, bias=False).attention(x, weights=weights), [0, 1, 5.9 / 6])


def test_macs_and_parameters_are_those_of_one_square_matrix():
    assert ESE(64).macs((3, 64, 5, 5)) == 3 * 64 * 64
    assert sum(weight.size for weight in ESE(64).weights.values()) == 64 * 64 + 64


def test_there_is_no_reduction():
    """The official class has an argument `reduction` that changes nothing."""
    with pytest.raises(TypeError, match="reduction"):
        attzoo.create("ese", 8, backend="torch", reduction=4)


@pytest.mark.parametrize("channels", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_official_weights_give_the_output_of_the_official_mathematics(channels, dtype):
    """The convolution `fc` of size 1 is written as a product with a matrix, the gate as in the code."""
    state = {"attn.fc.weight": torch.randn(channels, channels, 1, 1), "attn.fc.bias": torch.randn(channels)}
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    block = attzoo.create("ese", channels, backend="torch", variant="official", dtype=dtype)
    attzoo.load_weights(block, state, source="official")
    x = 3 * torch.randn(2, channels, 5, 4, dtype=dtype)
    z = torch.stack([sample.mean((1, 2)) @ state["attn.fc.weight"][:, :, 0, 0].T for sample in x])
    expected = x * (F.relu6(z + state["attn.fc.bias"] + 3) / 6)[:, :, None, None]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(block(x), expected, rtol=tolerance, atol=tolerance)
    exported = attzoo.export_weights(block, target="official")
    assert exported.keys() == {"fc.weight", "fc.bias"}
    for key, array in exported.items():
        np.testing.assert_array_equal(array, state[f"attn.{key}"])


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {
    "": ({"channels": 5}, {"excite.weight": (5, 5), "excite.bias": (5,)}),
    "without bias": ({"channels": 5, "bias": False}, {"excite.weight": (5, 5)}),
}


# ---- published variants ----------------------------------------------------------------------------------------------


def ese_of_paper(x, w, training):
    """Compute eSE as the paper: a fully connected layer and a sigmoid."""
    return x * torch.sigmoid(F.linear(x.mean((2, 3)), w["excite.weight"], w["excite.bias"]))[:, :, None, None]


def ese_of_code(x, w, training):
    """Compute eSE as its authors' code: a convolution of size 1, and a hard sigmoid."""
    z = F.conv2d(F.adaptive_avg_pool2d(x, 1), w["excite.weight"][:, :, None, None], w["excite.bias"])
    return x * (z + 3).clamp(0, 6) / 6


LAYER = arrays_of("excite")
PUBLISHED = {
    "paper": Published(ese_of_paper, LAYER, {}),
    "official": Published(ese_of_code, LAYER, {}),
    "timm": Published(ese_of_code, LAYER, {}),
}
