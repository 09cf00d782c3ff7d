"""The attention gate: numbers worked out by hand, and its published variants."""

from math import log

import numpy as np
import pytest
import torch.nn.functional as F
from published import MAP, Published, arrays_of, assert_close, batch_norm, norm_shapes, norms_of, pointwise

from attzoo.blocks.attention_gate.spec import AttentionGate


def gate_weights(spec, **arrays):
    """Return these arrays by canonical name, and zeros for the others."""
    return {name: np.asarray(arrays.get(name.replace(".", "_"), np.zeros(w.shape)), float).reshape(w.shape)
            for name, w in spec.weights.items()}   # fmt: skip


def test_worked_out_by_hand():
    """relu(x + g) = relu(2 - 1) = 1, times log 3, gives 3/4; where x + g < 0, psi's bias alone: 1/2."""
    spec = AttentionGate(1, 1, 1, spatial_dims=1)
    weights = gate_weights(spec, skip_weight=1, gating_weight=1, psi_weight=log(3))
    assert_close(spec(np.array([[[2.0, 1.0]]]), np.array([[[-1.0, -3.0]]]), weights=weights), [3 / 2, 1 / 2])


def test_coarse_gating_signal_is_resampled():
    """One pixel of log 3 is repeated for all four pixels of x. Two pixels are mixed 3 : 1 in the middle."""
    spec = AttentionGate(1, 1, 1, spatial_dims=1)
    weights = gate_weights(spec, gating_weight=1, psi_weight=1)
    assert_close(spec.attention(np.ones((1, 1, 4)), np.full((1, 1, 1), log(3)), weights=weights), [3 / 4] * 4)
    actual = spec.attention(np.ones((1, 1, 4)), np.array([[[0.0, 4.0]]]), weights=weights)
    assert_close(actual, 1 / (1 + np.exp(-np.array([0.0, 1, 3, 4]))))


@pytest.mark.parametrize(("x", "g", "message"), [
    ((1, 2, 4), (1, 3, 4, 4), r"expected \(N, 2, \*S\) with 2 spatial axes of at least 1 each, got \(1, 2, 4\)"),
    ((1, 2, 4, 4), (1, 3, 4), r"expected \(N, 3, \*S\) with 2 spatial axes of at least 1 each, got \(1, 3, 4\)"),
])   # fmt: skip
def test_input_of_another_rank_raises(x, g, message):
    with pytest.raises(ValueError, match=message):
        AttentionGate(2, 3).check_inputs(x, g)


def test_macs_of_a_strided_gate():
    """x of 7 x 6 pixels has 3 x 3 after the stride, with 2 x 2 products per channel, and psi; g has 2 x 3 pixels."""
    shapes, gates = ((2, 4, 7, 6), (2, 3, 2, 3)), 2 * (3 * 3 * 2 * (4 * 2 * 2 + 1) + 2 * 3 * 2 * 3)
    assert AttentionGate(4, 3, 2, stride=2).macs(*shapes) == gates
    assert AttentionGate(4, 3, 2, stride=2, output_transform=True).macs(*shapes) == gates + 2 * 7 * 6 * 4 * 4


def test_inter_channels_are_half_the_channels():
    assert AttentionGate(1, 5).inter_channels == 1
    assert AttentionGate(64, 128).inter_channels == 32


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {
    "": (
        {"channels": 6, "gating_channels": 5},
        {"skip.weight": (3, 6), "skip.bias": (3,), "gating.weight": (3, 5), "gating.bias": (3,),
         "psi.weight": (1, 3), "psi.bias": (1,)},
    ),
    "1d": (
        {"channels": 6, "gating_channels": 5, "inter_channels": 4, "norm": True, "spatial_dims": 1},
        {"skip.weight": (4, 6), "skip.bias": (4,), "gating.weight": (4, 5), "gating.bias": (4,),
         "psi.weight": (1, 4), "psi.bias": (1,)}
        | norm_shapes("skip_norm", 4) | norm_shapes("gating_norm", 4) | norm_shapes("psi_norm", 1),
    ),
    "3d": (
        {"channels": 6, "gating_channels": 5, "stride": [2, 1, 3], "skip_bias": False, "output_transform": True,
         "spatial_dims": 3},
        {"skip.weight": (3, 6, 2, 1, 3), "gating.weight": (3, 5), "gating.bias": (3,), "psi.weight": (1, 3),
         "psi.bias": (1,), "output.weight": (6, 6), "output.bias": (6,)} | norm_shapes("output_norm", 6),
    ),
}   # fmt: skip


# ---- published variants ----------------------------------------------------------------------------------------------


def gate_leejunhyun(x, g, w, training):
    """Compute LeeJunHyun's gate, which is MONAI's too."""
    t, p = (
        batch_norm(pointwise(array, w, name), w, f"{name}_norm", training)
        for name, array in (("skip", x), ("gating", g))
    )
    psi = batch_norm(pointwise(F.relu(p + t), w, "psi"), w, "psi_norm", training)
    return x * psi.sigmoid()


def gate_keras(x, g, w, training):
    """Compute the gate of Keras repositories: channels last, with three dense layers on every pixel."""
    x_last, g_last = x.movedim(1, -1), g.movedim(1, -1)
    theta = x_last @ w["skip.weight"].T + w["skip.bias"]
    phi = g_last @ w["gating.weight"].T + w["gating.bias"]
    psi = (theta + phi).relu() @ w["psi.weight"].T + w["psi.bias"]
    return (x_last * psi.sigmoid()).movedim(-1, 1)


def gate_oktay(x, g, w, training):
    """Compute the gate of the paper's code."""
    mode, conv = ("bilinear", F.conv2d) if x.ndim == 4 else ("trilinear", F.conv3d)
    theta = conv(x, w["skip.weight"], stride=2)
    phi = F.interpolate(pointwise(g, w, "gating"), size=theta.shape[2:], mode=mode)
    a = F.interpolate(pointwise((theta + phi).relu(), w, "psi").sigmoid(), size=x.shape[2:], mode=mode)
    return batch_norm(pointwise(a.expand_as(x) * x, w, "output"), w, "output_norm", training)


PLAIN = arrays_of("skip", "gating", "psi")
NORMED = PLAIN + norms_of("skip_norm", "gating_norm", "psi_norm")
OKTAY = ("skip.weight", *arrays_of("gating", "psi", "output"), *norms_of("output_norm"))
HALF_OF_X = {(64, 44): {"width": 32}, (1, 1): {"width": 1}}
QUARTER_OF_G = {(64, 44): {"width": 11}, (1, 1): {"width": 1}}
SAME_SIZE = ((MAP, (2, 12, 6, 5)),)
COARSE = (((2, 6, 9, 8), (2, 12, 3, 2)), ((2, 6, 7, 6, 9), (2, 4, 2, 3, 4)))
PUBLISHED = {
    "oktay": Published(gate_oktay, OKTAY, HALF_OF_X, COARSE),
    "leejunhyun": Published(gate_leejunhyun, NORMED, HALF_OF_X, SAME_SIZE),
    "monai": Published(gate_leejunhyun, NORMED, HALF_OF_X, SAME_SIZE),
    "keras": Published(gate_keras, PLAIN, QUARTER_OF_G, SAME_SIZE),
    "kuc": Published(gate_keras, PLAIN, HALF_OF_X, SAME_SIZE),
}
