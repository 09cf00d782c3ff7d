"""The U-Net's table and spec, without any framework: what is built of which arguments, and what is refused."""

import json
from dataclasses import fields, replace
from itertools import pairwise
from typing import get_type_hints

import numpy as np
import pytest
from nets import NETS, SMALL, close, create, draw, image
from samples import assert_starts_as

import attzoo
from attzoo.contract import Weight
from attzoo.unet import plan
from attzoo.unet.plan import Unit
from attzoo.unet.spec import INITIALIZERS, MOST_LEVELS, Arguments, UNet

DOUBLE = {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
NORM = ("weight", "bias", "mean", "var")
GATE = {f"{part}.{leaf}" for part in ("skip", "gating", "psi") for leaf in ("weight", "bias")}


def net(**kwargs):
    return UNet(**SMALL | kwargs)


def under(prefix, names):
    return {f"{prefix}.{name}" for name in names}


# ---- the table -----------------------------------------------------------------------------------------


def test_rows():
    table = net(dropout=(0.1, 0.2), block="se", block_options={"reduction": 2}).levels
    assert [level.channels for level in table] == [4, 6, 8]
    assert [level.stride for level in table] == [(1, 1), (2, 2), (2, 2)]
    assert [level.pool for level in table] == [False, True, True]
    assert [level.block.channels for level in table] == [4, 6, 8]
    assert [level.supervised for level in table] == [False] * 3
    assert (table[2].decoder, table[2].up, table[2].gate) == ((), (), None)
    for level, below in pairwise(table):
        here = level.channels
        assert [(u.inputs, u.outputs) for u in level.up] == [(below.channels, here)]
        assert level.interpolation == "nearest"
        assert (level.gate.channels, level.gate.gating_channels) == (here, here)
        assert [(u.inputs, u.outputs, u.dropout) for u in level.decoder] == [(2 * here, here, 0.1), (here, here, 0.2)]
    for above, level in zip((3, 4, 6), table, strict=True):
        first, second = level.encoder
        assert (first.inputs, first.outputs, second.inputs, second.outputs) == (above, *[level.channels] * 3)
        assert first.kernel == second.kernel == (3, 3)
        assert first.stride == second.stride == (1, 1)
        assert (first.norm, first.activation, first.dropout, second.dropout) == ("batch", "relu", 0.1, 0.2)


def test_a_strided_encoder_needs_no_pool():
    table = net(down="conv", strides=[(2, 1), 3]).levels
    assert [level.pool for level in table] == [False] * 3
    assert [[unit.stride for unit in level.encoder] for level in table] == [
        [(1, 1), (1, 1)], [(2, 1), (1, 1)], [(3, 3), (1, 1)]
    ]   # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "ups", "both"),   # at the finest level: units after interpolation, channels the decoder sees
    [
        ({"up": "linear"}, [(False, 6, 4, (3, 3))], 8),
        ({"up": "linear", "up_conv": False}, [], 10),
        ({"up": "transpose"}, [(True, 6, 6, (4, 4)), (False, 6, 4, (3, 3))], 8),
        ({"up": "transpose", "up_conv": False}, [(True, 6, 4, (2, 2))], 8),
        ({"up": "transpose", "strides": (2, 3), "up_kernel_size": 5}, [(True, 6, 6, (5, 5)), (False, 6, 4, (3, 3))], 8),
        ({"up": "transpose", "strides": ((1, 2), 2)}, [(True, 6, 6, (1, 4)), (False, 6, 4, (3, 3))], 8),
    ],
)
def test_ways_up(arguments, ups, both):
    finest = net(**arguments).levels[0]
    assert [(u.transposed, u.inputs, u.outputs, u.kernel) for u in finest.up] == ups
    assert finest.decoder[0].inputs == both
    assert finest.gate.inputs == (4, both - 4)
    assert finest.interpolation == (None if arguments["up"] == "transpose" else "linear")


def test_grid_gates():
    grid = net(gating="grid", combine=True, gated=1, up="linear", up_conv=False)
    assert [level.gate and level.gate.inputs for level in grid.levels] == [None, (6, 8), None]
    assert [level.combine and (level.combine.inputs, level.combine.kernel) for level in grid.levels] == [
        None, (6, (1, 1)), None
    ]   # fmt: skip
    assert (grid.gating_unit.inputs, grid.gating_unit.outputs, grid.gating_unit.norm) == (8, 8, "batch")
    assert net().gating_unit is None


def test_a_small_skip_is_widened_for_its_gate():
    assert [level.least for level in net(skip_options={"stride": (2, 1)}).levels] == [(2, 1), (2, 1), (1, 1)]
    assert [level.least for level in net(skip="se").levels] == [(1, 1)] * 3


def test_merge():
    (unit,) = net(decoder="merge", kernel_size=5, dropout=0.5).levels[0].decoder
    assert unit == Unit("1", 8, 4, (3, 3), (1, 1), "instance", "prelu", 0.5)


def test_signatures_name_every_argument():
    named = [field.name for field in fields(UNet) if field.kw_only]
    told, meant = get_type_hints(Arguments), get_type_hints(UNet)
    assert told == {name: meant[name] for name in named}
    assert list(told) == named


def test_padding():
    assert Unit("", 1, 1, (3, 5), (1, 1)).padding == (1, 2)
    assert Unit("", 1, 1, (4, 2), (2, 2), transposed=True).padding == (1, 0)


@pytest.mark.case27
@pytest.mark.case28
def test_sizes_round_up():
    assert plan.sizes(net(), (11, 4)) == [(11, 4), (6, 2), (3, 1)]
    assert plan.sizes(net(), (1, 2)) == [(1, 2), (1, 1), (1, 1)]
    assert plan.sizes(net(strides=((3, 1), 2)), (10, 5)) == [(10, 5), (4, 5), (2, 3)]


# ---- the weights -----------------------------------------------------------------------------------------


def test_macs_worked_out_by_hand():
    """Two 4 x 4 images, 2 x 2 at the deeper level; 3 x 3 convolutions; a bottleneck of C channels costs 2 C."""
    net = UNet(1, 2, (3, 4), skip=None, block="se", block_options={"reduced_channels": 1})
    encoder = 16 * 9 * (1 * 3 + 3 * 3) + 2 * 3 + 4 * 9 * (3 * 4 + 4 * 4) + 2 * 4
    decoder = 16 * 9 * (4 * 3 + 6 * 3 + 3 * 3) + 2 * 3
    head = 16 * 3 * 2
    assert net.macs((2, 1, 4, 4)) == 2 * (encoder + decoder + head)


def test_names_of_the_plain_net():
    wanted = {"head.weight", "head.bias"}
    for i in range(3):
        wanted |= under(f"encoder.{i}", DOUBLE | under("norm1", NORM) | under("norm2", NORM))
    for i in range(2):
        wanted |= under(f"decoder.{i}", DOUBLE | under("norm1", NORM) | under("norm2", NORM))
        wanted |= under(f"up.{i}", {"conv.weight", "conv.bias"} | under("norm", NORM))
        wanted |= under(f"skip.{i}", GATE)
    weights = net().weights
    assert set(weights) == wanted
    assert weights["encoder.1.conv1.weight"].shape == (6, 4, 3, 3)
    assert weights["decoder.0.conv1.weight"].shape == (4, 8, 3, 3)
    assert weights["up.1.conv.weight"].shape == (6, 8, 3, 3)
    assert weights["skip.0.skip.weight"].shape == (2, 4)
    assert weights["head.weight"].shape == (2, 4)


def test_names_of_every_option():
    weights = net(
        up="transpose", gating="grid", combine=True, gated=1, decoder="merge", deep_supervision=True, norm=None,
        block="eca", skip_options={"stride": 2, "skip_bias": False},
    ).weights   # fmt: skip
    wanted = {"head.weight", "head.bias", "gating.conv.weight", "gating.conv.bias"}
    for i in range(3):
        wanted |= under(f"encoder.{i}", DOUBLE | {"block.conv.weight"})
    for i in range(2):
        wanted |= under(f"up.{i}", {"transpose.weight", "transpose.bias", "conv.weight", "conv.bias"})
        wanted |= under(f"decoder.{i}", {"conv1.weight", "conv1.bias", "activation1.weight", "block.conv.weight"})
        wanted |= under(f"supervision.{i}", {"weight", "bias"})
    wanted |= under("skip.1", GATE - {"skip.bias"}) | under("combine.1", {"conv.weight", "conv.bias"})
    assert set(weights) == wanted
    assert weights["up.0.transpose.weight"].shape == (6, 6, 4, 4)   # (in, out, *k)
    assert weights["skip.1.skip.weight"].shape == (3, 6, 2, 2)
    assert weights["supervision.1.weight"].shape == (2, 6)
    assert weights["head.weight"].shape == (2, 4)   # of two classes from each of two levels
    assert weights["decoder.0.activation1.weight"].shape == (1,)


def test_transposed_kernels_stay_kernels():
    weights = net(up="transpose", up_conv=False, strides=(1, 2)).weights
    assert weights["up.0.transpose.weight"].shape == (6, 4, 1, 1)


STARTS = {   # of a map (8, 6, 3, 3)
    "kaiming": Weight((8, 6, 3, 3), "normal", (2 / 54) ** 0.5),
    "xavier": Weight((8, 6, 3, 3), "normal", (2 / (54 + 72)) ** 0.5),
    "normal": Weight((8, 6, 3, 3), "normal", 0.02),
    "orthogonal": Weight((8, 6, 3, 3), "orthogonal", 1.0),
    "glorot": Weight((8, 6, 3, 3), "uniform", (6 / (54 + 72)) ** 0.5),
    "torch": Weight((8, 6, 3, 3), "uniform", 54**-0.5),
}


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_starts(initializer):
    spec = net(initializer=initializer, block="eca", skip_options={"norm": True}, decoder="merge")
    weights, torch = spec.weights, initializer == "torch"
    assert weights["encoder.2.conv1.weight"] == STARTS[initializer]
    zero = Weight((8,), "constant")
    assert weights["encoder.2.conv1.bias"] == (Weight((8,), "uniform", 54**-0.5) if torch else zero)
    assert weights["encoder.2.norm1.bias"] == zero
    spread = 0.0 if initializer in ("glorot", "torch") else 0.02
    one = Weight((8,), "normal", 0.02, 1.0) if spread else Weight((8,), "constant", 0, 1)
    assert weights["encoder.2.norm1.weight"] == one
    assert weights["encoder.2.norm1.mean"] == replace(zero, trainable=False)
    assert weights["encoder.2.norm1.var"] == Weight((8,), "constant", center=1.0, trainable=False)
    gate = weights["skip.1.gating.weight"]
    assert (gate.shape, gate.initialization) == ((3, 6), "normal" if torch else STARTS[initializer].initialization)
    assert (weights["skip.1.psi.bias"] == Weight((1,), "constant")) != torch
    assert weights["decoder.0.activation1.weight"] == Weight((1,), "constant", center=0.25)
    assert weights["encoder.0.block.conv.weight"].initialization == "uniform"   # as ECA's spec initializes it


@pytest.mark.parametrize("initializer", INITIALIZERS)
@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_bodies_start_so(initializer, backend):
    wide = {"channels": (24, 20), "initializer": initializer, "skip_options": {"norm": True}, "up": "transpose"}
    spec = create("plain", "numpy", skip="attention_gate", **wide)
    made = attzoo.weights(create("plain", backend, skip="attention_gate", **wide))
    for name, weight in spec.weights.items():
        if weight.initialization == "orthogonal":
            flat = made[name].reshape(weight.shape[0], -1)
            small = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
            close(small, np.eye(len(small)), 1e-5)
        else:
            assert_starts_as(made[name], weight)


# ---- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_config_rebuilds_the_net(name):
    spec = create(name, "numpy")
    again = UNet(**json.loads(json.dumps(spec.config())))
    assert again == spec
    assert again.weights == spec.weights
    assert again.config() == spec.config()


OTHERS = {   # every argument, a net in which it counts, and another value
    "in_channels": ({}, 2),
    "out_channels": ({}, 1),
    "channels": ({}, (4, 6, 7)),
    "strides": ({}, (2, 3)),
    "kernel_size": ({}, 5),
    "norm": ({}, "instance"),
    "dropout": ({}, 0.5),
    "down": ({}, "conv"),
    "up": ({}, "linear"),
    "up_kernel_size": ({"up": "transpose"}, 3),
    "up_conv": ({"up": "linear"}, False),
    "skip": ({}, "eca"),
    "skip_options": ({}, {"inter_channels": 1}),
    "gated": ({}, 1),
    "gating": ({}, "grid"),
    "combine": ({}, True),
    "concat": ({}, "up_first"),
    "decoder": ({}, "merge"),
    "block": ({}, "se"),
    "block_options": ({"block": "eca"}, {"kernel_size": 3}),
    "deep_supervision": ({}, True),
    "head": ({}, "sigmoid"),
    "initializer": ({}, "normal"),
    "spatial_dims": ({}, 1),
}


@pytest.mark.parametrize("argument", [field.name for field in fields(UNet)])
def test_no_argument_lies(argument):
    """Changing one alone changes the weights, or the output, or what training drops, or what is accepted."""
    arguments, value = OTHERS[argument]
    one, other = net(**arguments), net(**arguments | {argument: value})
    if one.weights != other.weights or one.rates != other.rates:
        return
    x, weights = image((1, 3, 9, 10)), draw(one)
    assert abs(one(x, weights=weights) - other(x, weights=weights)).max() > 1e-3


def test_dropout_is_where_the_table_says():
    assert net(dropout=0.3).rates == (0.3, 0.0)
    assert net(dropout=(0, 0.5)).rates == (0.0, 0.5)
    with pytest.raises(ValueError, match=r"has no dropout, got dropout=\(0.3, 0.0\)"):
        net(dropout=0.3)(image((1, 3, 4, 4)), weights=draw(net()), training=True)


REFUSED = [   # arguments, what is said
    ({"in_channels": 0}, ValueError, "in_channels must be >= 1, got 0"),
    ({"out_channels": 1.0}, TypeError, "out_channels must be an integer, got 1.0"),
    ({"channels": (4,)}, ValueError, "channels must be 2 to 32 integers, one a level, got 1 of them"),
    ({"channels": 64}, ValueError, "channels must be 2 to 32 integers, one a level, got 64"),
    ({"channels": "46"}, ValueError, "channels must be 2 to 32 integers, one a level, got '46'"),
    ({"channels": (4, 0)}, ValueError, "channels must be >= 1, got 0"),
    ({"channels": (4, True)}, TypeError, "channels must be an integer, got True"),
    ({"channels": (4,) * (MOST_LEVELS + 1)}, ValueError, "got 33 of them"),
    ({"strides": 33}, ValueError, "strides must be at most 32, got 33"),
    ({"strides": 0}, ValueError, "strides must be >= 1, got 0"),
    ({"strides": (2, 2, 2)}, ValueError, "strides must be one number or 2, one between levels, got (2, 2, 2)"),
    ({"strides": ((2, 2, 2), 2)}, ValueError, "a stride must be one number or 2, one per spatial axis, got (2, 2, 2)"),
    ({"strides": 2.0}, TypeError, "strides must be an integer, got 2.0"),
    ({"kernel_size": 2}, ValueError, "kernel_size must be odd, got 2"),
    ({"norm": "layer"}, ValueError, "norm must be one of 'batch', 'instance', None, got 'layer'"),
    ({"dropout": 1}, ValueError, "dropout must be in [0, 1), got 1"),
    ({"dropout": (0.1, -0.1)}, ValueError, "dropout must be in [0, 1), got -0.1"),
    ({"dropout": (0.1, 0.1, 0.1)}, ValueError, "dropout must be one number or two, got (0.1, 0.1, 0.1)"),
    ({"dropout": "much"}, TypeError, "dropout must be a number, got 'much'"),
    ({"down": "avg"}, ValueError, "down must be one of 'max_pool', 'conv', got 'avg'"),
    ({"up": "bilinear"}, ValueError, "up must be one of 'nearest', 'linear', 'transpose', got 'bilinear'"),
    ({"up_kernel_size": 4}, ValueError, "up_kernel_size is for up='transpose', got up='nearest'"),
    ({"up": "transpose", "up_kernel_size": 0}, ValueError, "up_kernel_size must be >= 1, got 0"),
    ({"up": "transpose", "up_kernel_size": 2, "strides": 3}, ValueError, "at least the stride, 3, got 2"),
    ({"up_conv": 1}, TypeError, "up_conv must be True or False, got 1"),
    ({"skip": "attention_gates"}, ValueError, "did you mean 'attention_gate'?"),
    ({"skip": 5}, TypeError, "block must be a name, got 5"),
    ({"skip": "unet"}, ValueError, "expected the name of a block, got 'unet', a network"),
    ({"skip_options": {"reduction": 2}}, ValueError, "attention_gate has no option 'reduction'. Known: inter_channels"),
    ({"skip_options": [{}]}, ValueError, "skip_options must be a mapping or 2 of them, one a level, got [{}]"),
    ({"skip_options": [{}, 5]}, TypeError, "skip_options must be mappings of argument to value, got [{}, 5]"),
    ({"skip_options": {"stride": 0}}, ValueError, "stride must be >= 1, got 0"),
    ({"skip_options": {"spatial_dims": 1}}, ValueError, "spatial_dims of a block follows from the network"),
    ({"skip_options": {"gating_channels": 1}}, ValueError, "gating_channels of a block follows from the network"),
    ({"gated": 3}, ValueError, "gated must be at most 2, the number of skips, got 3"),
    ({"gated": 0}, ValueError, "gated must be >= 1, got 0"),
    ({"skip": None, "gated": 1}, ValueError, "skip_options, gated, gating and combine are for a gate, got skip=None"),
    ({"skip": None, "skip_options": {"norm": True}}, ValueError, "are for a gate, got skip=None"),
    ({"skip": None, "gating": "grid"}, ValueError, "are for a gate, got skip=None"),
    ({"skip": None, "combine": True}, ValueError, "are for a gate, got skip=None"),
    ({"skip": "se", "gating": "grid"}, ValueError, "gating='grid' is for a gate with a gating signal, got skip='se'"),
    ({"gating": "down"}, ValueError, "gating must be one of 'up', 'grid', got 'down'"),
    ({"concat": "both"}, ValueError, "concat must be one of 'skip_first', 'up_first', got 'both'"),
    ({"decoder": "single"}, ValueError, "decoder must be one of 'double', 'merge', got 'single'"),
    ({"block": "ska"}, ValueError, "unknown block 'ska'"),
    ({"block": "attention_gate"}, ValueError, "block must take one input, 'attention_gate' takes 2"),
    ({"block": "unet"}, ValueError, "expected the name of a block, got 'unet', a network"),
    ({"block_options": {"reduction": 2}}, ValueError, "block_options are for a block, got block=None"),
    ({"block": "se", "block_options": [{}, {}]}, ValueError, "block_options must be a mapping or 3 of them"),
    ({"deep_supervision": "yes"}, TypeError, "deep_supervision must be True or False, got 'yes'"),
    ({"head": "softmax"}, ValueError, "head must be one of 'linear', 'sigmoid', got 'softmax'"),
    ({"initializer": "he"}, ValueError, "initializer must be one of"),
    ({"spatial_dims": 4}, ValueError, "spatial_dims must be one of 1, 2, 3, got 4"),
]


@pytest.mark.parametrize(("arguments", "error", "says"), REFUSED, ids=[str(a)[:60] for a, _, _ in REFUSED])
def test_refused(arguments, error, says):
    with pytest.raises(error) as caught:
        net(**arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_one_a_level():
    gates, blocks = [{"inter_channels": 3}, {"norm": True}], [{}, {"reduction": 3}, {}]
    spec = net(skip_options=gates, block="se", block_options=blocks)
    assert [level.gate.inter_channels for level in spec.levels[:2]] == [3, 3]
    assert [level.gate.norm for level in spec.levels[:2]] == [False, True]
    assert [level.block.reduction for level in spec.levels] == [16, 3, 16]
