"""SK: numbers computed by hand, the paper's equations, refused arguments, weights of timm, and published variants."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import (
    CHANNELS,
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
from attzoo.blocks.sk.spec import SK


def test_macs_are_those_of_the_paths_and_matrices():
    block = SK(8, reduced_channels=3, groups=2)
    assert block.macs((2, 8, 6, 5)) == 2 * (6 * 5 * 2 * 9 * 8 * 4 + 3 * 8 + 2 * 8 * 3)


def test_output_equals_numbers_computed_by_hand():
    """Path 1 is the identity, and path 2, whose taps have a distance of 2, moves pixels by 2 to the right."""
    block = SK(1, reduced_channels=1, spatial_dims=1)
    weights = {name: np.full(w.shape, w.center) for name, w in block.weights.items()}
    weights |= {"path1.weight": np.array([[[0.0, 1, 0]]]), "path2.weight": np.array([[[1.0, 0, 0]]])}
    weights |= {"reduce.weight": np.array([[1.0]]), "select.weight": np.array([[1.0], [0]])}
    x, scale = np.array([[[1.0, 2, 3, 4]]]), 1.00001**-0.5   # of a batch norm with variance 1
    first = 1 / (1 + np.exp(-(10 + 3) / 4 * scale * scale))   # softmax of the mean of 1 + 2 + 3 + 4 + 1 + 2, and of 0
    coefficients = block.attention(x, weights=weights)
    assert_close(coefficients["path1"], first)
    assert_close(coefficients["path2"], 1 - first)
    expected = scale * (first * np.array([1, 2, 3, 4]) + (1 - first) * np.array([0, 0, 1, 2]))
    np.testing.assert_allclose(block(x, weights=weights)[0, 0], expected, rtol=1e-13)


def test_paper_equations_in_numpy():
    """Eq. 1 to 6 with M = 2 and groups: tap by tap, with batch norms in training."""
    rng, block = np.random.default_rng(0), SK(6, reduced_channels=4, groups=3)
    w = {name: rng.normal(size=a.shape) for name, a in block.weights.items()}
    x = rng.normal(size=(3, 6, 7, 5))

    def norm(z, name):
        axes, shape = (0, *range(2, z.ndim)), (-1, *(1,) * (z.ndim - 2))
        z = (z - z.mean(axes, keepdims=True)) / np.sqrt(z.var(axes, keepdims=True) + 1e-5)
        return np.maximum(z * w[f"{name}.weight"].reshape(shape) + w[f"{name}.bias"].reshape(shape), 0)

    def path(name, dilation):
        kernel, y = w[f"{name}.weight"], np.zeros_like(x)
        for i, j, di, dj, out, k in np.ndindex(7, 5, 3, 3, 6, 2):
            row, column, group = i + dilation * (di - 1), j + dilation * (dj - 1), out // 2
            if 0 <= row < 7 and 0 <= column < 5:
                y[:, out, i, j] += x[:, 2 * group + k, row, column] * kernel[out, k, di, dj]
        return norm(y, f"{name}_norm")

    u1, u2 = path("path1", 1), path("path2", 2)
    z = norm((u1 + u2).mean((2, 3)) @ w["reduce.weight"].T, "reduce_norm")
    a, b = (np.exp(z @ matrix.T) for matrix in (w["select.weight"][:6], w["select.weight"][6:]))
    expected = u1 * (a / (a + b))[:, :, None, None] + u2 * (b / (a + b))[:, :, None, None]
    np.testing.assert_allclose(block(x, weights=w, training=True), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"split": True, "channels": 7}, "channels must be a multiple of the 2 paths with split=True, got 7: give such a"),
    ({"groups": 3, "channels": 8}, "groups must divide the 8 input channels of a path, got 3: give 1, 2, 4, 8$"),
    ({"groups": 8, "channels": 8, "split": True}, "groups must divide the 4 input channels of a path, got 8"),
    ({"kernel_sizes": (3, 4), "channels": 8}, r"kernel_sizes must be at least two odd integers >= 3, got \[3, 4\]"),
    ({"kernel_sizes": (3,), "channels": 8}, "kernel_sizes must be at least two odd"),
])   # fmt: skip
def test_arguments_that_do_not_fit_the_channels_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SK(**arguments)


def test_groups_are_32_where_they_divide_the_channels_else_the_greatest_common_divisor():
    assert [SK(c).groups for c in (32, 64, 96, 40, 33)] == [32, 32, 32, 8, 1]
    assert SK(64, split=True).groups == 32


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_coefficients_of_the_paths_sum_to_1_and_are_recorded_by_name(backend):
    from attzoo.adapters import adapter

    block = attzoo.create("sk", 6, backend=backend, kernel_sizes=(3, 5, 7))
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
    with attzoo.attention_maps(block) as maps:
        adapter(backend).forward(block, [x], training=False)
    assert list(maps) == ["path1", "path2", "path3"]
    np.testing.assert_allclose(sum(maps.values()), np.ones((2, 6, 1, 1)), rtol=1e-6)


def test_a_call_in_training_updates_running_statistics_once():
    block = attzoo.create("sk", 6, backend="torch").train()
    block(torch.randn(3, 6, 5, 4))
    assert {int(b) for name, b in block.named_buffers() if name.endswith("num_batches_tracked")} == {1}


class Timm(nn.Module):
    """The mathematics of timm's SelectiveKernel, with its keys."""

    def __init__(self, channels, width, dilations, groups, split):
        super().__init__()
        inputs = channels // len(dilations) if split else channels
        self.split = split
        self.paths = nn.ModuleList([nn.ModuleDict({
            "conv": nn.Conv2d(inputs, channels, 3, padding=d, dilation=d, groups=groups, bias=False),
            "bn": nn.BatchNorm2d(channels),
        }) for d in dilations])   # fmt: skip
        self.attn = nn.ModuleDict({
            "fc_reduce": nn.Conv2d(channels, width, 1, bias=False), "bn": nn.BatchNorm2d(width),
            "fc_select": nn.Conv2d(width, channels * len(dilations), 1, bias=False),
        })   # fmt: skip

    def forward(self, x):
        count, channels = len(self.paths), x.shape[1]
        parts = x.chunk(count, 1) if self.split else [x] * count
        u = torch.stack([path.bn(path.conv(part)).relu() for path, part in zip(self.paths, parts, strict=True)], 1)
        s = u.sum(1).mean((2, 3), keepdim=True)
        z = self.attn.fc_select(self.attn.bn(self.attn.fc_reduce(s)).relu())
        return (u * z.view(-1, count, channels, 1, 1).softmax(1)).sum(1)


@pytest.mark.parametrize("split", [False, True])
def test_weights_of_timm_give_its_output(split):
    arguments = {"channels": 12, "reduced_channels": 5, "kernel_sizes": (3, 5, 7), "groups": 2, "split": split}
    module = Timm(12, 5, (1, 2, 3), 2, split)
    assert_reads_weights(module, "timm", "sk", arguments, ((4, 12, 7, 7), (4, 12, 9, 4)), scale=0.2)


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

NORMS = ("path1_norm", "path2_norm")
ARRAYS = {
    "": (
        {"channels": 64, "reduced_channels": 32},
        {"path1.weight": (64, 2, 3, 3), "path2.weight": (64, 2, 3, 3), "reduce.weight": (32, 64)}
        | {"select.weight": (128, 32)}
        | norm_shapes("path1_norm", 64) | norm_shapes("path2_norm", 64) | norm_shapes("reduce_norm", 32),
    ),
    "split": (
        {"channels": 8, "reduced_channels": 3, "groups": 1, "split": True, "dilated": False},
        {"path1.weight": (8, 4, 3, 3), "path2.weight": (8, 4, 5, 5), "reduce.weight": (3, 8)}
        | {"select.weight": (16, 3)}
        | norm_shapes("path1_norm", 8) | norm_shapes("path2_norm", 8) | norm_shapes("reduce_norm", 3),
    ),
}   # fmt: skip


# ---- published variants ----------------------------------------------------------------------------------------------


def sk(x, w, training, split):
    """Compute SK with paths of dilation 1 and 2. The kernels determine the groups."""
    outputs, parts = [], x.chunk(2, 1) if split else (x, x)
    for i, part in enumerate(parts, start=1):
        kernel = w[f"path{i}.weight"]
        u = F.conv2d(part, kernel, padding=i, dilation=i, groups=part.shape[1] // kernel.shape[1])
        outputs.append(batch_norm(u, w, f"path{i}_norm", training).relu())
    s = sum(outputs).mean((2, 3), keepdim=True)
    h = batch_norm(pointwise(s, w, "reduce"), w, "reduce_norm", training).relu()
    a = pointwise(h, w, "select").unflatten(1, (2, -1)).softmax(1)
    return sum(u * a[:, i] for i, u in enumerate(outputs))


WEIGHTS = arrays_of("path1", "path2", "reduce", "select", leaves=("weight",)) + norms_of(*NORMS, "reduce_norm")
TIMM_16 = (8, 8, 8, 8, 8, 8, 8, 8, 8, 16, 24, 32)
PUBLISHED = {
    "paper": Published(partial(sk, split=False), WEIGHTS, widths((32,) * len(CHANNELS))),
    "official": Published(partial(sk, split=False), WEIGHTS, widths((32,) * len(CHANNELS))),
    "timm": Published(partial(sk, split=True), WEIGHTS, widths(TIMM_16)),
}
