"""GC: numbers computed by hand, the mathematics of its sources, and its published variants."""

from math import exp, log, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import CHANNELS, Published, arrays_of, assert_close, widths

import attzoo
from attzoo.blocks.gc.spec import GC

SCORE = {"score.weight": np.array([[1.0, 0.0]]), "score.bias": np.array([7.0])}
UNIT = 1 / sqrt(1 + 1e-5)   # the layer norm of 1 and -1


def transform(term, signs):
    """Return weights whose squeeze is signs * s[1], and whose excite adds up both units, with a bias of -1 and 2."""
    return {
        f"{term}_squeeze.weight": np.array([[0.0, signs[0]], [0.0, signs[1]]]), f"{term}_squeeze.bias": np.zeros(2),
        f"{term}_norm.weight": np.ones(2), f"{term}_norm.bias": np.zeros(2),
        f"{term}_excite.weight": np.array([[1.0, 1.0], [0.0, 3.0]]), f"{term}_excite.bias": np.array([-1.0, 2.0]),
    }   # fmt: skip


# scores log 3 and 0: p is 3/4 and 1/4, so that s[1] is 3/4 * 0 + 1/4 * 4 = 1
X = np.array([[log(3), 0.0], [0.0, 4.0]])[None]


@pytest.mark.parametrize(("signs", "shift"), [((1, -1), (UNIT - 1, 2.0)), ((-1, 1), (UNIT - 1, 2 + 3 * UNIT))])
def test_adding_worked_out_by_hand(signs, shift):
    """The layer norm of (1, -1) is (UNIT, -UNIT), and relu keeps the positive unit."""
    weights = SCORE | transform("shift", signs)
    assert_close(GC(2).attention(X, weights=weights), shift)
    assert_close(GC(2)(X, weights=weights), X + np.array(shift)[None, :, None])


def test_multiplying_and_both_worked_out_by_hand():
    scale = [1 / (1 + exp(1 - UNIT)), 1 / (1 + exp(-2))]
    shift = [UNIT - 1, 2 + 3 * UNIT]
    weights = SCORE | transform("scale", (1, -1)) | transform("shift", (-1, 1))
    a, b = (np.array(values)[None, :, None] for values in (scale, shift))
    assert_close(GC(2, fusion="multiply")(X, weights=weights), X * a)
    both = GC(2, fusion="both")
    assert_close(both(X, weights=weights), X * a + b)
    coefficients = both.attention(X, weights=weights)
    assert list(coefficients) == ["scale", "shift"]
    assert_close(coefficients["scale"], scale)
    assert_close(coefficients["shift"], shift)


def test_width_is_at_least_two():
    """The layer norm of one unit is its bias, so that nothing would depend on x."""
    assert [GC(channels).width for channels in (1, 16, 47, 48)] == [2, 2, 2, 3]
    with pytest.raises(ValueError, match=r"^reduced_channels must be >= 2, got 1$"):
        GC(8, reduced_channels=1)


@pytest.mark.parametrize("epsilon", [0, -1e-5])
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(ValueError, match=r"^epsilon must be > 0, got "):
        GC(8, epsilon=epsilon)


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_gc_is_initially_the_identity_and_half_of_x_if_it_multiplies(backend):
    x = np.random.default_rng(0).normal(size=(2, 8, 3, 4)).astype(np.float32)
    adapter = attzoo.adapters.adapter(backend)
    for fusion, factor in (("add", 1), ("multiply", 0.5), ("both", 0.5)):
        block = attzoo.create("gc", 8, backend=backend, fusion=fusion)
        np.testing.assert_array_equal(adapter.forward(block, [x], training=False), factor * x)


def test_macs_are_those_of_the_scores_and_of_the_transforms():
    assert GC(64).macs((2, 64, 5, 7)) == 2 * 64 * (35 + 2 * 4)
    assert GC(64, fusion="both").macs((2, 64, 5, 7)) == 2 * 64 * (35 + 4 * 4)


# ---- the official mathematics with the official weights --------------------------------------------------------------

C, R = 20, 5
LAYERS = {   # of a transform, as the layers of a Sequential
    "0.weight": (R, C, 1, 1), "0.bias": (R,), "1.weight": (R, 1, 1), "1.bias": (R, 1, 1), "3.weight": (C, R, 1, 1),
    "3.bias": (C,),
}   # fmt: skip
FUSIONS = {"add": ("channel_add_conv",), "multiply": ("channel_mul_conv",)}
FUSIONS["both"] = FUSIONS["multiply"] + FUSIONS["add"]


def official(x, state, fusion):
    """Compute the context block by einsum: a softmax over all pixels, then the transforms, first the product."""
    logits = torch.einsum("nchw,c->nhw", x, state["conv_mask.weight"][0, :, 0, 0]) + state["conv_mask.bias"]
    weights = torch.exp(logits - logits.amax((1, 2), keepdim=True))
    context = torch.einsum("nchw,nhw->nc", x, weights / weights.sum((1, 2), keepdim=True))

    def transform(path):
        u = context @ state[f"{path}.0.weight"].view(R, C).T + state[f"{path}.0.bias"]
        centered = u - u.mean(1, keepdim=True)
        normed = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
        hidden = normed * state[f"{path}.1.weight"].view(R) + state[f"{path}.1.bias"].view(R)
        z = hidden.clamp(min=0) @ state[f"{path}.3.weight"].view(C, R).T + state[f"{path}.3.bias"]
        return z[:, :, None, None]

    if fusion != "add":
        x = x / (1 + torch.exp(-transform("channel_mul_conv")))
    return x if fusion == "multiply" else x + transform("channel_add_conv")


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_official_weights_give_the_output_of_the_official_mathematics(fusion, dtype):
    shapes = {"conv_mask.weight": (1, C, 1, 1), "conv_mask.bias": (1,)}
    shapes |= {f"{path}.{name}": shape for path in FUSIONS[fusion] for name, shape in LAYERS.items()}
    state = {key: torch.randn(shape, dtype=dtype) for key, shape in shapes.items()}
    block = attzoo.create("gc", C, backend="torch", reduced_channels=R, fusion=fusion, dtype=dtype)
    attzoo.load_weights(block, {f"context_block.{key}": tensor for key, tensor in state.items()}, source="official")
    x = torch.randn(3, C, 4, 6, dtype=dtype)
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12   # 4 ulp of the outputs, which are up to 10
    torch.testing.assert_close(block(x), official(x, state, fusion), rtol=tolerance, atol=tolerance)
    exported = attzoo.export_weights(block, target="official")
    assert {key: array.shape for key, array in exported.items()} == shapes
    assert all(np.array_equal(array, state[key]) for key, array in exported.items())


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------


def arrays(channels, width, *terms):
    """Return the names and shapes of the arrays of a block with these transforms."""
    shapes = {"score.weight": (1, channels), "score.bias": (1,)}
    for term in terms:
        shapes |= {f"{term}_squeeze.weight": (width, channels), f"{term}_squeeze.bias": (width,)}
        shapes |= {f"{term}_norm.weight": (width,), f"{term}_norm.bias": (width,)}
        shapes |= {f"{term}_excite.weight": (channels, width), f"{term}_excite.bias": (channels,)}
    return shapes


ARRAYS = {
    "": ({"channels": 64}, arrays(64, 4, "shift")),
    "multiply": ({"channels": 6, "fusion": "multiply"}, arrays(6, 2, "scale")),
    "both": ({"channels": 8, "reduced_channels": 3, "fusion": "both"}, arrays(8, 3, "scale", "shift")),
}


# ---- published variants ----------------------------------------------------------------------------------------------


def gc(fusion, epsilon):
    """Return the function of a source with this fusion and epsilon of the layer norm."""

    def compute(x, w, training):
        n, c = x.shape[:2]
        p = F.softmax(F.conv2d(x, w["score.weight"][:, :, None, None], w["score.bias"]).reshape(n, 1, -1), -1)
        context = (x.reshape(n, c, -1) @ p.transpose(1, 2)).squeeze(-1)

        def transform(term):
            h = F.linear(context, w[f"{term}_squeeze.weight"], w[f"{term}_squeeze.bias"])
            h = F.layer_norm(h, h.shape[1:], w[f"{term}_norm.weight"], w[f"{term}_norm.bias"], epsilon).relu()
            return F.linear(h, w[f"{term}_excite.weight"], w[f"{term}_excite.bias"])[:, :, None, None]

        y = x if fusion == "add" else x * transform("scale").sigmoid()
        return y if fusion == "multiply" else y + transform("shift")

    return compute


def names(*terms):
    """Return the names of the arrays of a block with these transforms."""
    return arrays_of("score", *(f"{term}_{part}" for term in terms for part in ("squeeze", "norm", "excite")))


AT_LEAST_2 = widths([max(2, channels // 16) for channels in CHANNELS])
TIMM = widths((2, 2, 2, 3, 5, 8, 9, 12, 13, 25, 38, 64))
PUBLISHED = {
    "paper": Published(gc("add", 1e-5), names("shift"), AT_LEAST_2),
    "official": Published(gc("add", 1e-5), names("shift"), AT_LEAST_2),
    "official-multiply": Published(gc("multiply", 1e-5), names("scale"), AT_LEAST_2),
    "official-both": Published(gc("both", 1e-5), names("scale", "shift"), AT_LEAST_2),
    "timm": Published(gc("multiply", 1e-6), names("scale"), TIMM),
    "timm-add": Published(gc("add", 1e-6), names("shift"), TIMM),
}
