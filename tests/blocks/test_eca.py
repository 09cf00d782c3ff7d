"""ECA: numbers worked out by hand, and its published variants."""

from math import log

import numpy as np
import pytest
import torch.nn.functional as F
from published import MAP, Published, arrays_of, assert_close

from attzoo.blocks.eca.spec import ECA, adaptive_kernel_size


@pytest.mark.parametrize(("channels", "k"), [(1, 1), (7, 1), (8, 3), (127, 3), (128, 5), (2047, 5), (2048, 7)])
def test_adaptive_kernel_size(channels, k):
    """The kernel size of eq. 12 changes at 8, 128 and 2048 channels. At 128 it is 4, a tie, which is rounded up."""
    assert adaptive_kernel_size(channels) == k


def test_rule_for_the_kernel_size():
    """|(log2 2048 + 1) / 2| = 6, |(11 + 5) / 2| = 8 and |(11 + 1) / 3| = 4, ties which are rounded up."""
    assert [ECA(2048, gamma=gamma, b=b).kernel_size for gamma, b in ((None, None), (None, 5), (3, None))] == [7, 9, 5]
    assert (ECA(2048).gamma, ECA(2048).b) == (2.0, 1.0)


def test_kernel_sizes_out_of_range_raise():
    """|(log2 8 + 1) / gamma| is 2^31 for gamma = 2^-29."""
    assert adaptive_kernel_size(8, 2.0**-29) == 2**31 + 1
    fix = r"set kernel_size, or a larger \|gamma\| or smaller \|b\|"
    message = rf"^kernel_size must be at most 2\^31, got 4e\+09 from gamma=1e-09 and b=1\.0: {fix}$"
    with pytest.raises(ValueError, match=message):
        adaptive_kernel_size(8, 1e-9)
    with pytest.raises(ValueError, match=r"^gamma must not be 0, got 0: leave it out for 2, or set kernel_size$"):
        ECA(8, gamma=0)
    fix = "set a smaller kernel_size, or padding='zeros'"
    message = rf"^kernel_size must be <= 2 \* channels \+ 1 = 7 with padding='circular', got 9: {fix}$"
    with pytest.raises(ValueError, match=message):
        ECA(3, 9, padding="circular")
    assert ECA(3, 7, padding="circular").kernel_size == 7


def test_worked_out_by_hand():
    """A kernel (1, 0, 0) reads the previous channel: logits 0, 0, log 3."""
    x = np.array([0.0, log(3), -log(3)]).reshape(1, 3, 1)
    assert_close(ECA(3, 3)(x, weights={"conv.weight": np.array([1.0, 0, 0])}), [0, log(3) / 2, -log(3) * 3 / 4])


def test_circular_padding():
    """The channel before the first is the last."""
    x = np.array([0.0, 0.0, log(3)]).reshape(1, 3, 1)
    actual = ECA(3, 3, padding="circular").attention(x, weights={"conv.weight": np.array([1.0, 0, 0])})
    assert_close(actual, [3 / 4, 1 / 2, 1 / 2])


def test_macs_are_those_of_the_convolution_over_channels():
    assert ECA(64).macs((2, 64, 5)) == 2 * 64 * 3


def test_explicit_kernel_size_overrides_the_rule():
    assert ECA(64, kernel_size=7).kernel_size == 7


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {"": ({"channels": 64}, {"conv.weight": (3,)})}


# ---- published variants ----------------------------------------------------------------------------------------------


def eca_official(x, w, training):
    """Compute ECA as its authors' code does."""
    kernel = w["conv.weight"].view(1, 1, -1)
    y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
    y = F.conv1d(y, kernel, padding=(kernel.shape[-1] - 1) // 2).transpose(-1, -2).unsqueeze(-1)
    return x * y.sigmoid().expand_as(x)


def eca_circular(x, w, training):
    """Compute timm's CecaModule."""
    kernel = w["conv.weight"].view(1, 1, -1)
    half = (kernel.shape[-1] - 1) // 2
    y = F.pad(x.mean((2, 3))[:, None], (half, half), mode="circular")
    return x * F.conv1d(y, kernel).sigmoid().view(*x.shape[:2], 1, 1)


def kernel_sizes(*values):
    """Return kernel sizes for 4, 8, 64, 128 and 2048 channels, as sizes of a Published."""
    return {(channels,): {"k": k} for channels, k in zip((4, 8, 64, 128, 2048), values, strict=True)}


KERNEL = arrays_of("conv", weight_names=("weight",))
PUBLISHED = {
    "paper": Published(eca_official, KERNEL, kernel_sizes(1, 3, 3, 5, 7)),
    "official": Published(eca_official, KERNEL, kernel_sizes(3, 3, 3, 3, 3)),
    "timm": Published(eca_official, KERNEL, kernel_sizes(3, 3, 3, 5, 7), ((MAP,), ((2, 4, 6, 5),))),
    "circular": Published(eca_circular, KERNEL, kernel_sizes(3, 3, 3, 5, 7), (((2, 130, 6, 5),),)),
    "kecam": Published(eca_official, KERNEL, kernel_sizes(3, 3, 3, 5, 7)),
}
