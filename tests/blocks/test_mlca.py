"""MLCA: numbers worked out by hand, the published module and its weights, and the published variant."""

from math import ceil, floor, log

import numpy as np
import pytest
import torch
from published import Published, arrays_of, assert_close, assert_reads_weights
from torch import nn
from torch.nn import functional as F

from attzoo.blocks.mlca.spec import MLCA


def test_worked_out_by_hand():
    """Two windows of one pixel: local logits of channel 0 are 0 and log 3, the global one is their mean, log(3) / 2."""
    x = np.array([0.0, log(3)]).reshape(1, 1, 2)
    spec = MLCA(1, 1, local_size=2, local_weight=0.25)
    got = spec.attention(x, weights={"conv.weight": np.ones(1), "local_conv.weight": np.ones(1)})
    mean = 1 / (1 + 3**-0.5)
    assert_close(got, [1 / 8 + 3 / 4 * mean, 3 / 16 + 3 / 4 * mean])


def test_local_convolution_passes_over_the_windows_one_after_the_other():
    """A kernel (1, 0, 0) reads the previous channel; before the first channel of window 1 is the last of window 0."""
    x = np.array([[[1.0, 2.0], [3.0, 4.0]]])   # channels (1, 2), (3, 4) of two windows
    weights = {"conv.weight": np.zeros(3), "local_conv.weight": np.array([1.0, 0, 0])}
    got = MLCA(2, 3, local_size=2, local_weight=1.0).attention(x, weights=weights)
    assert_close(got, 1 / (1 + np.exp(-np.array([[0, 3.0], [1, 2]]))))


@pytest.mark.parametrize("space", [(7,), (7, 3), (6, 5, 2)])
def test_formula_by_loops(space):
    """Means of windows, both convolutions, and means of the windows of the grid for each pixel."""
    rng, c, size = np.random.default_rng(0), 4, 3
    x, spec = rng.normal(size=(2, c, *space)), MLCA(c, 3, local_size=size, local_weight=0.3)
    weights = {name: rng.normal(size=3) for name in spec.weights}

    def window(i, old, new):
        return slice(floor(i * old / new), ceil((i + 1) * old / new))

    grid = (size,) * len(space)
    for n in range(2):
        rows = [x[(n, k, *(window(i, old, size) for i, old in zip(index, space, strict=True)))].mean()
                for index in np.ndindex(grid) for k in range(c)]   # fmt: skip
        means = np.array(rows).reshape(-1, c).mean(0)
        local = np.convolve(rows, weights["local_conv.weight"][::-1], "same")
        total = np.convolve(means, weights["conv.weight"][::-1], "same")
        mixed = 0.3 / (1 + np.exp(-local.reshape(*grid, c))) + 0.7 / (1 + np.exp(-total))
        for index in np.ndindex(space):
            part = mixed[tuple(window(i, size, new) for i, new in zip(index, space, strict=True))]
            expected = x[(n, slice(None), *index)] * part.reshape(-1, c).mean(0)
            np.testing.assert_allclose(spec(x, weights=weights)[(n, slice(None), *index)], expected, rtol=1e-12)


def test_kernel_size_follows_the_rule_of_eca():
    assert [MLCA(c).k for c in (1, 8, 64, 128, 2048)] == [1, 3, 3, 5, 7]
    assert MLCA(64, gamma=1).k == 7


@pytest.mark.parametrize(("arguments", "message"), [
    ({"local_size": 0}, "local_size must be >= 1, got 0"),
    ({"local_weight": 1.5}, "local_weight must be between 0 and 1, got 1.5"),
    ({"kernel_size": 3, "b": 2.0}, "expected b or kernel_size, not both"),
    ({"gamma": 0}, "gamma must not be 0"),
])   # fmt: skip
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        MLCA(8, **arguments)


def test_macs_are_those_of_both_convolutions():
    assert MLCA(8, 3, local_size=2).macs((2, 8, 5, 4)) == 2 * 8 * 3 * (1 + 4)


# ---- the published module --------------------------------------------------------------------------------------------


class Official(nn.Module):
    """MLCA of wandahangFY/MLCA@afbeb47, by its keys."""

    def __init__(self, k, size=5):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)
        self.conv_local = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)
        self.size = size

    def forward(self, x):
        p = F.adaptive_avg_pool2d(x, self.size)
        u = self.conv_local(p.permute(0, 2, 3, 1).reshape(len(x), 1, -1)).reshape(len(x), self.size, self.size, -1)
        z = self.conv(p.mean((2, 3))[:, None])[:, 0, :, None, None]
        mixed = (u.permute(0, 3, 1, 2).sigmoid() + z.sigmoid()) / 2
        return x * F.adaptive_avg_pool2d(mixed, x.shape[2:])


def test_published_weights_give_the_published_outputs():
    shapes = [(2, 64, 16, 11), (2, 64, 10, 5), (1, 64, 3, 1), (1, 64, 1, 1)]
    assert_reads_weights(Official(3), "official", "mlca", {"channels": 64}, shapes)


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {"": ({"channels": 64}, {"conv.weight": (3,), "local_conv.weight": (3,)})}


# ---- published variants ----------------------------------------------------------------------------------------------


def mlca(x, w, training):
    """Compute MLCA in plain torch with the kernels of w."""
    module = Official(len(w["conv.weight"])).double()
    arrays = {"conv.weight": w["conv.weight"][None, None], "conv_local.weight": w["local_conv.weight"][None, None]}
    return torch.func.functional_call(module, arrays, x)


PUBLISHED = {
    "official": Published(
        mlca, arrays_of("conv", "local_conv", leaves=("weight",)),
        {(c,): {"k": k} for c, k in zip((1, 4, 8, 64, 128, 2048), (1, 1, 3, 3, 5, 7), strict=True)},
        (((2, 40, 6, 5),), ((2, 8, 12, 10),), ((2, 8, 3, 2),)),
    ),
}
