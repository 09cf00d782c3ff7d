"""CBAM: order of its two parts, and its published variants."""

from functools import partial

import numpy as np
from published import (
    FLOOR_8,
    FLOOR_16,
    HALF_UP_16,
    SQUEEZE,
    Published,
    arrays_of,
    assert_close,
    channel_gate,
    norm_shapes,
    norms_of,
    spatial_gate,
    widths,
)

from attzoo.blocks.cbam.spec import CBAM
from attzoo.blocks.channel_attention.spec import ChannelAttention
from attzoo.blocks.spatial_attention.spec import SpatialAttention


def test_macs_are_those_of_both_parts():
    assert CBAM(8, 2, kernel_size=3).macs((2, 8, 5, 4)) == 2 * (2 * 2 * 8 * 4 + 5 * 4 * 2 * 3 * 3)


def test_channel_attention_comes_before_spatial_attention():
    rng, block = np.random.default_rng(0), CBAM(6, reduction=2, kernel_size=3)
    weights = {name: rng.normal(size=weight.shape) for name, weight in block.weights.items()}
    x = rng.normal(size=(2, 6, 4, 5))
    channel = {name.removeprefix("channel."): array for name, array in weights.items() if name.startswith("channel.")}
    scaled = ChannelAttention(6, 2)(x, weights=channel)
    expected = SpatialAttention(6, 3)(scaled, weights={"conv.weight": weights["spatial.conv.weight"]})
    assert_close(block(x, weights=weights), expected)
    assert_close(x * block.attention(x, weights=weights), expected)


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {
    "": (
        {"channels": 32, "kernel_size": 3, "norm": True},
        {f"channel.{name}": shape for name, shape in SQUEEZE.items()}
        | {"spatial.conv.weight": (1, 2, 3, 3)} | norm_shapes("spatial.norm", 1),
    ),
}   # fmt: skip


# ---- published variants ----------------------------------------------------------------------------------------------


def cbam(x, w, training, **options):
    """Compute channel attention, then spatial attention."""
    return spatial_gate(channel_gate(x, w, training, "channel."), w, training, "spatial.", **options)


MATRICES = arrays_of("channel.squeeze", "channel.excite", weight_names=("weight",))
BIASED = arrays_of("channel.squeeze", "channel.excite")
CONV = arrays_of("spatial.conv", weight_names=("weight",))
NORM = norms_of("spatial.norm")
PUBLISHED = {
    "paper": Published(partial(cbam, norm=False), MATRICES + CONV, widths(FLOOR_16)),
    "official": Published(partial(cbam, max_first=True), BIASED + CONV + NORM, widths(FLOOR_16)),
    "timm": Published(cbam, MATRICES + CONV + NORM, widths(HALF_UP_16)),
    "luuuyi": Published(partial(cbam, norm=False), MATRICES + CONV, widths(FLOOR_16)),
    "changzy00": Published(partial(cbam, norm=False), MATRICES + CONV, widths(FLOOR_16)),
    "kobiso": Published(partial(cbam, norm=False), BIASED + CONV, widths(FLOOR_8)),
}
