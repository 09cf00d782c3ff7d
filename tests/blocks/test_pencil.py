"""What the papers and a pencil say about each block; agreement between backends is tests/test_equivalence.py."""

import json
from dataclasses import fields
from math import log

import numpy as np
import pytest

import attzoo
from attzoo import registry
from attzoo.blocks.attention_gate.spec import AttentionGate
from attzoo.blocks.cbam.spec import CBAM
from attzoo.blocks.channel_attention.spec import ChannelAttention
from attzoo.blocks.eca.spec import ECA, adaptive_kernel_size
from attzoo.blocks.se.spec import SE
from attzoo.blocks.spatial_attention.spec import SpatialAttention
from attzoo.unet.spec import UNet


def near(got, wanted):
    np.testing.assert_allclose(np.asarray(got).ravel(), np.asarray(wanted, float).ravel(), rtol=1e-14, atol=1e-15)


def test_se():
    """Means 1 and 3, one hidden unit 3 - 1 = 2, logits 0 and log 3: a half of one, three quarters of the other."""
    x = np.array([[0.0, 2.0], [3.0, 3.0]])[None]
    weights = {"squeeze.weight": np.array([[-1.0, 1.0]]), "excite.weight": np.array([[0.0], [log(3) / 2]])}
    near(SE(2, bias=False)(x, weights=weights), [0, 1, 9 / 4, 9 / 4])


def test_se_width_is_never_zero():
    assert SE(8).reduced_channels == 1
    assert SE(64).reduced_channels == 4
    assert SE(64, reduced_channels=5).reduced_channels == 5


def test_channel_attention():
    """Mean 1 and maximum 2 both go through the same two layers; their sum, log 3, gives 3/4."""
    x = np.array([[0.0, 2.0, 1.0]])[None]
    weights = {"squeeze.weight": np.array([[1.0]]), "excite.weight": np.array([[log(3) / 3]])}
    near(ChannelAttention(1, bias=False)(x, weights=weights), [0, 3 / 2, 3 / 4])


def test_channel_attention_of_negatives():
    """The relu stands in each branch, before the sum: mean -1 gives nothing and maximum 1 gives log 3."""
    x = np.array([[-3.0, 1.0]])[None]
    weights = {"squeeze.weight": np.array([[1.0]]), "excite.weight": np.array([[log(3)]])}
    near(ChannelAttention(1, bias=False).attention(x, weights=weights), 3 / 4)


def test_spatial_attention():
    """A kernel of two centre taps, 1 on the mean and 2 on the maximum: logits 1 + 2 * 2 and 0 + 0."""
    x = np.array([[2.0, 0.0], [0.0, 0.0]])[None]
    kernel = np.zeros((1, 2, 3))
    kernel[0, :, 1] = 1, 2
    got = SpatialAttention(2, 3, spatial_dims=1).attention(x, weights={"conv.weight": kernel})
    near(got, [1 / (1 + np.exp(-5)), 1 / 2])


def test_spatial_attention_looks_with_an_unflipped_kernel():
    """The first tap sees the left neighbour, and zero outside."""
    kernel = np.zeros((1, 2, 3))
    kernel[0, 0, 0] = log(3)
    got = SpatialAttention(1, 3, spatial_dims=1).attention(np.ones((1, 1, 2)), weights={"conv.weight": kernel})
    near(got, [1 / 2, 3 / 4])


def test_cbam_is_channel_then_spatial():
    rng, block = np.random.default_rng(0), CBAM(6, reduction=2, kernel_size=3)
    weights = {name: rng.normal(size=weight.shape) for name, weight in block.weights.items()}
    x = rng.normal(size=(2, 6, 4, 5))
    channel = {name.removeprefix("channel."): a for name, a in weights.items() if name.startswith("channel.")}
    half = ChannelAttention(6, 2)(x, weights=channel)
    wanted = SpatialAttention(6, 3)(half, weights={"conv.weight": weights["spatial.conv.weight"]})
    near(block(x, weights=weights), wanted)
    near(x * block.attention(x, weights=weights), wanted)


@pytest.mark.parametrize(("channels", "k"), [(1, 1), (7, 1), (8, 3), (127, 3), (128, 5), (2047, 5), (2048, 7)])
def test_eca_rule(channels, k):
    """Eq. 12 changes at exactly 8, 128 and 2048; 128 is a tie, 4, that goes up."""
    assert adaptive_kernel_size(channels) == k


def test_eca():
    """A kernel (1, 0, 0) looks left: logits 0, 0, log 3."""
    x = np.array([0.0, log(3), -log(3)]).reshape(1, 3, 1)
    near(ECA(3, 3)(x, weights={"conv.weight": np.array([1.0, 0, 0])}), [0, log(3) / 2, -log(3) * 3 / 4])


def test_eca_circular():
    """Circular, the first channel's left neighbour is the last."""
    x = np.array([0.0, 0.0, log(3)]).reshape(1, 3, 1)
    got = ECA(3, 3, padding="circular").attention(x, weights={"conv.weight": np.array([1.0, 0, 0])})
    near(got, [3 / 4, 1 / 2, 1 / 2])


def test_an_explicit_kernel_wins():
    assert ECA(64, kernel_size=7).kernel_size == 7


def gate_weights(spec, **arrays):
    return {name: np.asarray(arrays.get(name.replace(".", "_"), np.zeros(w.shape)), float).reshape(w.shape)
            for name, w in spec.weights.items()}   # fmt: skip


def test_gate_adds_and_asks():
    """relu(x + g) = relu(2 - 1) = 1, times log 3, gives 3/4; where x + g < 0, psi's bias alone: 1/2."""
    spec = AttentionGate(1, 1, 1, spatial_dims=1)
    weights = gate_weights(spec, skip_weight=1, gating_weight=1, psi_weight=log(3))
    near(spec(np.array([[[2.0, 1.0]]]), np.array([[[-1.0, -3.0]]]), weights=weights), [3 / 2, 1 / 2])


def test_gate_resamples_a_coarse_signal():
    """One coarse pixel of log 3 serves all four of x; of two, the middle pixels get a mixture, 3 : 1."""
    spec = AttentionGate(1, 1, 1, spatial_dims=1)
    weights = gate_weights(spec, gating_weight=1, psi_weight=1)
    near(spec.attention(np.ones((1, 1, 4)), np.full((1, 1, 1), log(3)), weights=weights), [3 / 4] * 4)
    got = spec.attention(np.ones((1, 1, 4)), np.array([[[0.0, 4.0]]]), weights=weights)
    near(got, 1 / (1 + np.exp(-np.array([0.0, 1, 3, 4]))))


def test_gate_width():
    assert AttentionGate(1, 5).inter_channels == 1
    assert AttentionGate(64, 128).inter_channels == 32


@pytest.mark.parametrize(("channels", "macs"), [(64, 2 * 64 * 4), (256, 2 * 256 * 16)])
def test_macs(channels, macs):
    assert SE(channels).macs((1, channels, 56, 56)) == macs
    assert SE(channels).macs((3, channels, 7)) == 3 * macs
    assert SpatialAttention(channels).macs((1, channels, 10, 10)) == 98 * 100


@pytest.mark.parametrize(("block", "arguments"), [
    (SE, {"channels": 8, "reduction": 2}),
    (ChannelAttention, {"channels": 8, "reduced_channels": 3}),
    (SpatialAttention, {"channels": 5, "kernel_size": 3, "spatial_dims": 1}),
    (CBAM, {"channels": 8, "reduced_channels": 3, "kernel_size": 3, "spatial_dims": 3}),
    (ECA, {"channels": 8, "kernel_size": 5}),
    (UNet, {"in_channels": 3, "out_channels": 2, "kernel_size": 5, "strides": 3, "spatial_dims": 1}),
    (AttentionGate, {"channels": 4, "gating_channels": 3, "inter_channels": 2, "stride": 2, "spatial_dims": 1}),
])   # fmt: skip
def test_integers_of_numpy_are_taken_and_become_pythons(block, arguments):
    """Else a block whose sizes came out of an array's shape or arithmetic could not be saved."""
    spec = block(**{name: np.int64(value) for name, value in arguments.items()})
    assert json.dumps(spec.config()) == json.dumps(block(**arguments).config())


REQUIRED = {"attention_gate": {"channels": 8, "gating_channels": 4}, "unet": {"in_channels": 3, "out_channels": 2}}


@pytest.mark.parametrize("name", [*registry.BLOCKS, *registry.NETWORKS])
def test_an_argument_that_is_of_no_kind_is_refused_by_its_name(name):
    spec = attzoo.get(name, backend="numpy")
    for field in fields(spec):
        named = "block" if field.name == "skip" else field.name   # what stands in a skip is a block, by its name
        with pytest.raises((TypeError, ValueError), match=f"^{named} must be "):
            spec(**REQUIRED.get(name, {"channels": 8}) | {field.name: object()})
