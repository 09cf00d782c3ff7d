"""Channel attention: numbers worked out by hand, and its published variants."""

from math import log

import numpy as np
from published import FLOOR_8, FLOOR_16, HALF_UP_16, SQUEEZE, Published, arrays_of, assert_close, channel_gate, widths

from attzoo.blocks.channel_attention.spec import ChannelAttention


def test_worked_out_by_hand():
    """The logit is log 3 / 3 times mean 1 plus maximum 2, so log 3, and the coefficient 3/4."""
    x = np.array([[0.0, 2.0, 1.0]])[None]
    weights = {"squeeze.weight": np.array([[1.0]]), "excite.weight": np.array([[log(3) / 3]])}
    assert_close(ChannelAttention(1, bias=False)(x, weights=weights), [0, 3 / 2, 3 / 4])


def test_macs_are_those_of_two_matrices_on_two_pools():
    assert ChannelAttention(8, 2).macs((2, 8, 5, 4)) == 2 * 2 * 2 * 8 * 4


def test_relu_precedes_the_sum_of_both_branches():
    """Mean -1 contributes 0 and maximum 1 contributes log 3."""
    x = np.array([[-3.0, 1.0]])[None]
    weights = {"squeeze.weight": np.array([[1.0]]), "excite.weight": np.array([[log(3)]])}
    assert_close(ChannelAttention(1, bias=False).attention(x, weights=weights), 3 / 4)


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {"": ({"channels": 32}, SQUEEZE)}


# ---- published variants ----------------------------------------------------------------------------------------------

BIASED = arrays_of("squeeze", "excite")
UNBIASED = arrays_of("squeeze", "excite", weight_names=("weight",))
PUBLISHED = {
    "paper": Published(channel_gate, UNBIASED, widths(FLOOR_16)),
    "official": Published(channel_gate, BIASED, widths(FLOOR_16)),
    "timm": Published(channel_gate, UNBIASED, widths(HALF_UP_16)),
    "luuuyi": Published(channel_gate, UNBIASED, widths(FLOOR_16)),
    "kobiso": Published(channel_gate, BIASED, widths(FLOOR_8)),
}
