"""Channel attention: numbers worked out by hand, and its published variants."""

from math import log

import numpy as np
from published import FLOOR_8, FLOOR_16, HALF_UP_16, Published, arrays_of, assert_close, channel_gate, widths

from attzoo.blocks.channel_attention.spec import ChannelAttention


def test_worked_out_by_hand():
    """Mean 1 and maximum 2 both go through the same two layers; their sum, log 3, gives 3/4."""
    x = np.array([[0.0, 2.0, 1.0]])[None]
    weights = {"squeeze.weight": np.array([[1.0]]), "excite.weight": np.array([[log(3) / 3]])}
    assert_close(ChannelAttention(1, bias=False)(x, weights=weights), [0, 3 / 2, 3 / 4])


def test_negative_numbers():
    """The relu stands in each branch, before the sum: mean -1 gives nothing and maximum 1 gives log 3."""
    x = np.array([[-3.0, 1.0]])[None]
    weights = {"squeeze.weight": np.array([[1.0]]), "excite.weight": np.array([[log(3)]])}
    assert_close(ChannelAttention(1, bias=False).attention(x, weights=weights), 3 / 4)


# ---- published variants ----------------------------------------------------------------------------------------------

BIASED = arrays_of("squeeze", "excite")
UNBIASED = arrays_of("squeeze", "excite", leaves=("weight",))
PUBLISHED = {
    "paper": Published(channel_gate, UNBIASED, widths(FLOOR_16)),
    "official": Published(channel_gate, BIASED, widths(FLOOR_16)),
    "timm": Published(channel_gate, UNBIASED, widths(HALF_UP_16)),
    "luuuyi": Published(channel_gate, UNBIASED, widths(FLOOR_16)),
    "kobiso": Published(channel_gate, BIASED, widths(FLOOR_8)),
}
