"""Coordinate attention: numbers computed by hand, the official code's mathematics, and its published variants."""


import numpy as np
import pytest
import torch
import torch.nn.functional as F
from libraries import library
from published import Published, arrays_of, assert_close, batch_norm, norm_shapes, norms_of, pointwise, widths

import attzoo
from attzoo.adapters import adapter
from attzoo.blocks.coord_attention.spec import CoordAttention

CONVS = ("squeeze", "height", "width")
BACKENDS = ("torch", "keras")


def hard_swish(z):
    """Return z * min(max(z + 3, 0), 6) / 6."""
    return z * np.clip(z + 3, 0, 6) / 6


def sigmoid(z):
    """Return the logistic function of z."""
    return 1 / (1 + np.exp(-z))


def test_coefficients_computed_by_hand():
    """Rows have the means 3 and 9, columns 5 and 7; hard_swish(z) = z from 3 on, and the norm is the identity."""
    x = np.array([[2.0, 4.0], [8.0, 10.0]])[None, None]
    one, eps = np.ones(1), 1e-5
    weights = {"squeeze.weight": np.ones((1, 1)), "height.weight": np.ones((1, 1)), "width.weight": -np.ones((1, 1))}
    weights |= {"squeeze_norm.weight": one, "squeeze_norm.bias": 0 * one}
    weights |= {"squeeze_norm.mean": 0 * one, "squeeze_norm.var": one - eps}
    block = CoordAttention(1, reduced_channels=1, bias=False)
    got = block.attention(x, weights=weights)
    assert_close(got["height"], sigmoid(np.array([3.0, 9.0])))
    assert_close(got["width"], sigmoid(-np.array([5.0, 7.0])))
    assert got["height"].shape == (1, 1, 2, 1)
    assert got["width"].shape == (1, 1, 1, 2)
    assert_close(block(x, weights=weights), x * got["height"] * got["width"])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_output_equals_the_formula_of_the_paper_for_each_axis(dims):
    """Equations 4 to 9 at each position, with one more axis for volumes and one less for sequences."""
    rng, shape = np.random.default_rng(dims), (2, 5, 4, 3, 2)[: 2 + dims]
    block = CoordAttention(5, reduced_channels=3, spatial_dims=dims)
    w = {name: rng.normal(size=weight.shape) for name, weight in block.weights.items()}
    w["squeeze_norm.var"] = rng.uniform(0.5, 2, 3)
    x, expected = rng.normal(size=shape), np.empty(shape)
    names = {1: ["width"], 2: ["height", "width"], 3: ["depth", "height", "width"]}[dims]
    for n, *i in np.ndindex(2, *shape[2:]):
        factor = np.ones(5)
        for axis, name in enumerate(names):
            section = x[n].take(i[axis], axis=1 + axis).reshape(5, -1).mean(1)   # all pixels with this coordinate
            u = w["squeeze.weight"] @ section + w["squeeze.bias"]
            u = (u - w["squeeze_norm.mean"]) / np.sqrt(w["squeeze_norm.var"] + 1e-5)
            u = u * w["squeeze_norm.weight"] + w["squeeze_norm.bias"]
            factor *= sigmoid(w[f"{name}.weight"] @ hard_swish(u) + w[f"{name}.bias"])
        expected[(n, slice(None), *i)] = x[(n, slice(None), *i)] * factor
    np.testing.assert_allclose(block(x, weights=w), expected, rtol=1e-12)


def official(x, state):
    """Compute the official CoordAtt for x (N, C, H, W) with the arrays of its state dict, in inference."""
    h, w = x.shape[2:]
    rows, columns = x.mean(3), x.mean(2)
    y = F.conv2d(torch.cat([rows, columns], 2)[..., None], state["conv1.weight"], state["conv1.bias"])
    arrays = (state[f"bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    y = F.hardswish(F.batch_norm(y, *arrays))
    a_h = F.conv2d(y[:, :, :h], state["conv_h.weight"], state["conv_h.bias"]).sigmoid()
    a_w = F.conv2d(y[:, :, h:].reshape(len(x), -1, 1, w), state["conv_w.weight"], state["conv_w.bias"]).sigmoid()
    return x * a_w * a_h


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_official_weights_give_the_output_of_the_official_code(dtype, tolerance):
    rng = torch.Generator().manual_seed(0)
    shapes = {"conv1.weight": (8, 40, 1, 1), "conv1.bias": (8,), "bn1.weight": (8,), "bn1.bias": (8,),
              "bn1.running_mean": (8,), "conv_h.weight": (40, 8, 1, 1), "conv_h.bias": (40,),
              "conv_w.weight": (40, 8, 1, 1), "conv_w.bias": (40,)}   # fmt: skip
    state = {key: torch.randn(shape, generator=rng, dtype=dtype) for key, shape in shapes.items()}
    state |= {"bn1.running_var": torch.rand(8, generator=rng, dtype=dtype) + 0.5}
    state |= {"bn1.num_batches_tracked": torch.tensor(7)}
    x = torch.randn(2, 40, 5, 7, generator=rng, dtype=dtype)
    for backend in BACKENDS if dtype == torch.float32 else BACKENDS[:1]:
        dtypes = {"dtype": dtype} if backend == "torch" else {}
        block = attzoo.create("coord_attention", 40, backend=backend, variant="official", **dtypes)
        attzoo.load_weights(block, state, source="official")
        y = adapter(backend).forward(block, [x.numpy()], False)
        np.testing.assert_allclose(y, official(x, state), rtol=tolerance, atol=tolerance)
        exported = attzoo.export_weights(block, target="official")
        assert exported.keys() == state.keys() - {"bn1.num_batches_tracked"}
        assert all(np.array_equal(array, state[key]) for key, array in exported.items())


def test_weights_of_a_volume_have_no_official_keys():
    block = attzoo.create("coord_attention", 8, backend="torch", spatial_dims=3)
    with pytest.raises(ValueError, match=r"expected only arrays that the target also has, got depth\.weight"):
        attzoo.export_weights(block, target="official")


def test_swap_replaces_the_module_of_timm_and_keeps_its_outputs():
    module = library("timm.layers.coord_attn")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 3), module.CoordAttn(24, gate_layer="hard_sigmoid")).eval()
    x = torch.randn(2, 3, 9, 8)
    expected = net(x).detach()
    attzoo.swap(net, "coord_attention", where=lambda path, part: type(part).__name__ == "CoordAttn")
    assert net[1].spec == CoordAttention(24, reduced_channels=8, bias=False, gate="hard_sigmoid")
    torch.testing.assert_close(net(x), expected, rtol=1e-6, atol=1e-6)


def test_batch_norm_has_a_value_for_each_row_and_column():
    """An image of one pixel has two values per channel, and trains; a sequence of one has one, and raises."""
    image, sequence = (attzoo.create("coord_attention", 4, backend="torch", spatial_dims=dims) for dims in (2, 1))
    assert image(torch.ones(1, 4, 1, 1)).isfinite().all()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        sequence(torch.ones(1, 4, 1))


def test_macs_are_those_of_every_row_and_column():
    assert CoordAttention(64).macs((3, 64, 5, 7)) == 3 * 2 * 64 * 8 * (5 + 7)
    assert CoordAttention(64, spatial_dims=3).macs((1, 64, 5, 7, 2)) == 2 * 64 * 8 * 14


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

MATRICES = {"squeeze.weight": (8, 64), "height.weight": (64, 8), "width.weight": (64, 8)}
ARRAYS = {
    "": (
        {"channels": 64},
        MATRICES | {"squeeze.bias": (8,), "height.bias": (64,), "width.bias": (64,)} | norm_shapes("squeeze_norm", 8),
    ),
    "3d": (
        {"channels": 64, "bias": False, "spatial_dims": 3},
        {"squeeze.weight": (8, 64), "depth.weight": (64, 8)} | MATRICES | norm_shapes("squeeze_norm", 8),
    ),
}   # fmt: skip


# ---- published variants ----------------------------------------------------------------------------------------------


def coordinate(x, w, training):
    """Compute coordinate attention with 1 x 1 convolutions of an image with one column."""
    h, width = x.shape[2:]
    strips = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT], 2)   # (N, C, H + W, 1)
    y = F.hardswish(batch_norm(pointwise(strips, w, "squeeze"), w, "squeeze_norm", training))
    rows, columns = y.split([h, width], 2)
    return x * torch.sigmoid(pointwise(columns, w, "width")).mT * torch.sigmoid(pointwise(rows, w, "height"))


OFFICIAL = {(256,): {"width": 8}, (300,): {"width": 9}, (512,): {"width": 16}, (64,): {"width": 8}}
TIMM = (8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 16, 24)
PUBLISHED = {
    "official": Published(coordinate, arrays_of(*CONVS) + norms_of("squeeze_norm"), OFFICIAL),
    "timm": Published(coordinate, arrays_of(*CONVS, weight_names=("weight",)) + norms_of("squeeze_norm"), widths(TIMM)),
}
