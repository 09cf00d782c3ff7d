"""Spec and level table of the U-Net, without frameworks: arguments, weights, initialization and errors."""

import json
from dataclasses import fields, replace
from itertools import pairwise
from typing import get_type_hints

import numpy as np
import pytest
import torch
from nets import NETS, SMALL, assert_arrays_close, build, create, draw, image
from samples import assert_initialized_as
from torch.utils.flop_counter import FlopCounterMode

import attzoo
from attzoo.contract import Weight
from attzoo.unet import plan
from attzoo.unet.plan import Unit
from attzoo.unet.settings import INITIALIZERS, MAX_LEVELS, Arguments
from attzoo.unet.spec import UNet

DOUBLE = {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
NORM = ("weight", "bias", "mean", "var")
GATE = {f"{part}.{kind}" for part in ("skip", "gating", "psi") for kind in ("weight", "bias")}


def net(**kwargs):
    """Return the spec of a small U-Net."""
    return UNet(**SMALL | kwargs)


def prefixed(prefix, names):
    """Return names with a prefix."""
    return {f"{prefix}.{name}" for name in names}


# ---- level table --------------------------------------------------------------------------------------


def test_levels_of_the_default_network():
    table = net(dropout=(0.1, 0.2), block="se", block_options={"reduction": 2}).levels
    assert [level.channels for level in table] == [4, 6, 8]
    assert [level.stride for level in table] == [(1, 1), (2, 2), (2, 2)]
    assert [level.pool for level in table] == [False, True, True]
    assert [level.block.channels for level in table] == [4, 6, 8]
    assert [level.supervised for level in table] == [False] * 3
    assert (table[2].decoder, table[2].up, table[2].gate) == ((), (), None)
    for level, next_level in pairwise(table):
        channels = level.channels
        assert [(unit.inputs, unit.outputs) for unit in level.up] == [(next_level.channels, channels)]
        assert level.interpolation == "nearest"
        assert (level.gate.channels, level.gate.gating_channels) == (channels, channels)
        assert [(unit.inputs, unit.outputs, unit.dropout) for unit in level.decoder] == [
            (2 * channels, channels, 0.1), (channels, channels, 0.2)
        ]   # fmt: skip
    for channels_above, level in zip((3, 4, 6), table, strict=True):
        first_unit, second_unit = level.encoder
        assert (first_unit.inputs, first_unit.outputs, second_unit.inputs, second_unit.outputs) == (
            channels_above,
            *[level.channels] * 3,
        )
        assert first_unit.kernel == second_unit.kernel == (3, 3)
        assert first_unit.stride == second_unit.stride == (1, 1)
        assert (first_unit.norm, first_unit.activation, first_unit.dropout, second_unit.dropout) == (
            "batch",
            "relu",
            0.1,
            0.2,
        )


def test_strided_convolutions_replace_pooling():
    table = net(down="conv", strides=[(2, 1), 3]).levels
    assert [level.pool for level in table] == [False] * 3
    assert [[unit.stride for unit in level.encoder] for level in table] == [
        [(1, 1), (1, 1)], [(2, 1), (1, 1)], [(3, 3), (1, 1)]
    ]   # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "units", "inputs"),   # at the finest level: units of the upsampling, input channels of the decoder
    [
        ({"up": "linear"}, [(False, 6, 4, (3, 3))], 8),
        ({"up": "linear", "up_conv": False}, [], 10),
        ({"up": "transpose"}, [(True, 6, 6, (4, 4)), (False, 6, 4, (3, 3))], 8),
        ({"up": "transpose", "up_conv": False}, [(True, 6, 4, (2, 2))], 8),
        ({"up": "transpose", "strides": (2, 3), "up_kernel_size": 5}, [(True, 6, 6, (5, 5)), (False, 6, 4, (3, 3))], 8),
        ({"up": "transpose", "strides": ((1, 2), 2)}, [(True, 6, 6, (1, 4)), (False, 6, 4, (3, 3))], 8),
    ],
)
def test_units_of_every_upsampling(arguments, units, inputs):
    finest = net(**arguments).levels[0]
    assert [(unit.transposed, unit.inputs, unit.outputs, unit.kernel) for unit in finest.up] == units
    assert finest.decoder[0].inputs == inputs
    assert finest.gate.inputs == (4, inputs - 4)
    assert finest.interpolation == (None if arguments["up"] == "transpose" else "linear")


def test_grid_gating_uses_the_next_coarser_level():
    grid = net(gating="grid", combine=True, gated=1, up="linear", up_conv=False)
    assert [level.gate and level.gate.inputs for level in grid.levels] == [None, (6, 8), None]
    assert [level.combine and (level.combine.inputs, level.combine.kernel) for level in grid.levels] == [
        None, (6, (1, 1)), None
    ]   # fmt: skip
    assert (grid.gating_unit.inputs, grid.gating_unit.outputs, grid.gating_unit.norm) == (8, 8, "batch")
    assert net().gating_unit is None


def test_minimum_size_of_a_skip_is_the_stride_of_its_gate():
    assert [level.min_size for level in net(skip_options={"stride": (2, 1)}).levels] == [(2, 1), (2, 1), (1, 1)]
    assert [level.min_size for level in net(skip="se").levels] == [(1, 1)] * 3


def test_merge_decoder_has_one_unit():
    (unit,) = net(decoder="merge", kernel_size=5, dropout=0.5).levels[0].decoder
    assert unit == Unit("1", 8, 4, (3, 3), (1, 1), "instance", "prelu", 0.5)


def test_type_of_arguments_has_every_keyword_of_the_spec():
    names = [field.name for field in fields(UNet) if field.kw_only]
    hints, spec_hints = get_type_hints(Arguments), get_type_hints(UNet)
    assert hints == {name: spec_hints[name] for name in names}
    assert list(hints) == names


def test_padding_of_units():
    assert Unit("", 1, 1, (3, 5), (1, 1)).padding == (1, 2)
    assert Unit("", 1, 1, (4, 2), (2, 2), transposed=True).padding == (1, 0)


@pytest.mark.case27
@pytest.mark.case28
def test_sizes_of_coarser_levels_are_rounded_up():
    assert plan.sizes(net(), (11, 4)) == [(11, 4), (6, 2), (3, 1)]
    assert plan.sizes(net(), (1, 2)) == [(1, 2), (1, 1), (1, 1)]
    assert plan.sizes(net(strides=((3, 1), 2)), (10, 5)) == [(10, 5), (4, 5), (2, 3)]


# ---- weights ---------------------------------------------------------------------------------------------


def test_macs_worked_out_by_hand():
    """Two images of 4 x 4 pixels, 2 x 2 at the coarser level; 3 x 3 convolutions; SE with C channels costs 2 C."""
    net = UNet(1, 2, (3, 4), skip=None, block="se", block_options={"reduced_channels": 1})
    encoder = 16 * 9 * (1 * 3 + 3 * 3) + 2 * 3 + 4 * 9 * (3 * 4 + 4 * 4) + 2 * 4
    decoder = 16 * 9 * (4 * 3 + 6 * 3 + 3 * 3) + 2 * 3
    head = 16 * 3 * 2
    assert net.macs((2, 1, 4, 4)) == 2 * (encoder + decoder + head)


@pytest.mark.parametrize("name", NETS)
def test_macs_are_half_of_the_flops_that_torch_counts(name):
    network, shape = build(name, "torch"), NETS[name][1]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(shape, dtype=torch.float64))
    assert 2 * network.spec.macs(shape) == counter.get_total_flops()


def test_weight_names_of_the_default_network():
    expected = {"head.weight", "head.bias"}
    for i in range(3):
        expected |= prefixed(f"encoder.{i}", DOUBLE | prefixed("norm1", NORM) | prefixed("norm2", NORM))
    for i in range(2):
        expected |= prefixed(f"decoder.{i}", DOUBLE | prefixed("norm1", NORM) | prefixed("norm2", NORM))
        expected |= prefixed(f"up.{i}", {"conv.weight", "conv.bias"} | prefixed("norm", NORM))
        expected |= prefixed(f"skip.{i}", GATE)
    weights = net().weights
    assert set(weights) == expected
    assert weights["encoder.1.conv1.weight"].shape == (6, 4, 3, 3)
    assert weights["decoder.0.conv1.weight"].shape == (4, 8, 3, 3)
    assert weights["up.1.conv.weight"].shape == (6, 8, 3, 3)
    assert weights["skip.0.skip.weight"].shape == (2, 4)
    assert weights["head.weight"].shape == (2, 4)


def test_weight_names_with_further_options():
    weights = net(
        up="transpose", gating="grid", combine=True, gated=1, decoder="merge", deep_supervision=True, norm=None,
        block="eca", skip_options={"stride": 2, "skip_bias": False},
    ).weights   # fmt: skip
    expected = {"head.weight", "head.bias", "gating.conv.weight", "gating.conv.bias"}
    for i in range(3):
        expected |= prefixed(f"encoder.{i}", DOUBLE | {"block.conv.weight"})
    for i in range(2):
        expected |= prefixed(f"up.{i}", {"transpose.weight", "transpose.bias", "conv.weight", "conv.bias"})
        expected |= prefixed(f"decoder.{i}", {"conv1.weight", "conv1.bias", "activation1.weight", "block.conv.weight"})
        expected |= prefixed(f"supervision.{i}", {"weight", "bias"})
    expected |= prefixed("skip.1", GATE - {"skip.bias"}) | prefixed("combine.1", {"conv.weight", "conv.bias"})
    assert set(weights) == expected
    assert weights["up.0.transpose.weight"].shape == (6, 6, 4, 4)   # (in, out, *k)
    assert weights["skip.1.skip.weight"].shape == (3, 6, 2, 2)
    assert weights["skip.1.gating.weight"].shape == (3, 8)   # the gating signal is that of the next coarser level
    assert weights["supervision.1.weight"].shape == (2, 6)
    assert weights["head.weight"].shape == (2, 4)   # two classes from each of two levels
    assert weights["decoder.0.activation1.weight"].shape == (1,)


def test_transposed_kernels_of_size_1_keep_their_axes():
    weights = net(up="transpose", up_conv=False, strides=(1, 2)).weights
    assert weights["up.0.transpose.weight"].shape == (6, 4, 1, 1)


INITIALIZATIONS = {   # of a kernel (8, 6, 3, 3)
    "kaiming": Weight((8, 6, 3, 3), "normal", (2 / 54) ** 0.5),
    "xavier": Weight((8, 6, 3, 3), "normal", (2 / (54 + 72)) ** 0.5),
    "normal": Weight((8, 6, 3, 3), "normal", 0.02),
    "orthogonal": Weight((8, 6, 3, 3), "orthogonal", 1.0),
    "glorot": Weight((8, 6, 3, 3), "uniform", (6 / (54 + 72)) ** 0.5),
    "torch": Weight((8, 6, 3, 3), "uniform", 54**-0.5),
}


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_initialization_of_every_kind_of_array(initializer):
    spec = net(initializer=initializer, block="eca", skip_options={"norm": True}, decoder="merge")
    weights, torch = spec.weights, initializer == "torch"
    assert weights["encoder.2.conv1.weight"] == INITIALIZATIONS[initializer]
    zero = Weight((8,), "constant")
    assert weights["encoder.2.conv1.bias"] == (Weight((8,), "uniform", 54**-0.5) if torch else zero)
    assert weights["encoder.2.norm1.bias"] == zero
    spread = 0.0 if initializer in ("glorot", "torch") else 0.02
    one = Weight((8,), "normal", 0.02, 1.0) if spread else Weight((8,), "constant", 0, 1)
    assert weights["encoder.2.norm1.weight"] == one
    assert weights["encoder.2.norm1.mean"] == replace(zero, trainable=False)
    assert weights["encoder.2.norm1.var"] == Weight((8,), "constant", center=1.0, trainable=False)
    gate = weights["skip.1.gating.weight"]
    kind = "normal" if torch else INITIALIZATIONS[initializer].initialization
    assert (gate.shape, gate.initialization) == ((3, 6), kind)
    assert (weights["skip.1.psi.bias"] == Weight((1,), "constant")) != torch
    assert weights["decoder.0.activation1.weight"] == Weight((1,), "constant", center=0.25)
    assert weights["encoder.0.block.conv.weight"].initialization == "uniform"   # as ECA's spec initializes it


@pytest.mark.parametrize("initializer", INITIALIZERS)
@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_arrays_are_initialized_as_the_spec_declares(initializer, backend):
    arguments = {"channels": (24, 20), "initializer": initializer, "skip_options": {"norm": True}, "up": "transpose"}
    spec = create("plain", "numpy", skip="attention_gate", **arguments)
    arrays = attzoo.weights(create("plain", backend, skip="attention_gate", **arguments))
    for name, weight in spec.weights.items():
        if weight.initialization == "orthogonal":
            flat = arrays[name].reshape(weight.shape[0], -1)
            product = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
            assert_arrays_close(product, np.eye(len(product)), 1e-5)
        else:
            assert_initialized_as(arrays[name], weight)


# ---- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_config_creates_an_equal_spec(name):
    spec = create(name, "numpy")
    rebuilt = UNet(**json.loads(json.dumps(spec.config())))
    assert rebuilt == spec
    assert rebuilt.weights == spec.weights
    assert rebuilt.config() == spec.config()


CHANGED_ARGUMENTS = {   # argument -> other arguments with which it has an effect, and another value
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
def test_every_argument_has_an_effect(argument):
    """Changing one argument changes the weights, the dropout rates or the output."""
    arguments, value = CHANGED_ARGUMENTS[argument]
    original, changed = net(**arguments), net(**arguments | {argument: value})
    if original.weights != changed.weights or original.rates != changed.rates:
        return
    x, weights = image((1, 3, 9, 10)), draw(original)
    assert abs(original(x, weights=weights) - changed(x, weights=weights)).max() > 1e-3


def test_dropout_rates_and_error_of_the_numpy_network():
    assert net(dropout=0.3).rates == (0.3, 0.0)
    assert net(dropout=(0, 0.5)).rates == (0.0, 0.5)
    message = r"expected dropout=0 for the NumPy network in training, got dropout=\(0.3, 0.0\)"
    with pytest.raises(ValueError, match=message):
        net(dropout=0.3)(image((1, 3, 4, 4)), weights=draw(net()), training=True)


INVALID = [   # arguments, type of the error, its message
    ({"in_channels": 0}, ValueError, "in_channels must be >= 1, got 0"),
    ({"out_channels": 1.0}, TypeError, "out_channels must be an integer, got 1.0"),
    ({"channels": (4,)}, ValueError, "channels must be 2 to 32 integers, one per level, got 1 of them"),
    ({"channels": 64}, ValueError, "channels must be 2 to 32 integers, one per level, got 64"),
    ({"channels": "46"}, ValueError, "channels must be 2 to 32 integers, one per level, got '46'"),
    ({"channels": (4, 0)}, ValueError, "channels must be >= 1, got 0"),
    ({"channels": (4, True)}, TypeError, "channels must be an integer, got True"),
    ({"channels": (4,) * (MAX_LEVELS + 1)}, ValueError, "got 33 of them"),
    ({"strides": 33}, ValueError, "strides must be at most 32, got 33"),
    ({"strides": 0}, ValueError, "strides must be >= 1, got 0"),
    ({"strides": (2, 2, 2)}, ValueError, "one number or 2, one from each level to the next, got (2, 2, 2)"),
    ({"strides": ((2, 2, 2), 2)}, ValueError, "must be one number or 2, one per spatial axis, got (2, 2, 2)"),
    ({"strides": 2.0}, TypeError, "strides must be an integer, got 2.0"),
    ({"kernel_size": 2}, ValueError, "kernel_size must be odd, got 2"),
    ({"norm": "layer"}, ValueError, "norm must be one of 'batch', 'instance', None, got 'layer'"),
    ({"dropout": 1}, ValueError, "dropout must be in [0, 1), got 1"),
    ({"dropout": (0.1, -0.1)}, ValueError, "dropout must be in [0, 1), got -0.1"),
    ({"dropout": (0.1, 0.1, 0.1)}, ValueError, "dropout must be one number or two, for the two"),
    ({"dropout": "much"}, TypeError, "dropout must be a number, got 'much'"),
    ({"down": "avg"}, ValueError, "down must be one of 'max_pool', 'conv', got 'avg'"),
    ({"up": "bilinear"}, ValueError, "up must be one of 'nearest', 'linear', 'transpose', got 'bilinear'"),
    ({"up_kernel_size": 4}, ValueError, "must be None unless up='transpose', got 4 and up='nearest'"),
    ({"up": "transpose", "up_kernel_size": 0}, ValueError, "up_kernel_size must be >= 1, got 0"),
    ({"up": "transpose", "up_kernel_size": 2, "strides": 3}, ValueError, "at least the largest stride, 3, got 2"),
    ({"up_conv": 1}, TypeError, "up_conv must be True or False, got 1"),
    ({"skip": "attention_gates"}, ValueError, "did you mean 'attention_gate'?"),
    ({"skip": 5}, TypeError, "block must be a name, got 5"),
    ({"skip": "unet"}, ValueError, "must be names of blocks, got 'unet', the name of a network"),
    ({"skip_options": {"reduction": 2}}, ValueError, "attention_gate has no option 'reduction'. Known: inter_channels"),
    ({"skip_options": [{}]}, ValueError, "skip_options must be one mapping or 2, one per level, got [{}]"),
    ({"skip_options": [{}, 5]}, TypeError, "skip_options must contain only mappings from"),
    ({"skip_options": {"stride": 0}}, ValueError, "stride must be >= 1, got 0"),
    ({"skip_options": {"spatial_dims": 1}}, ValueError, "without spatial_dims, which the network sets, got"),
    ({"skip_options": {"gating_channels": 1}}, ValueError, "without gating_channels, which the network sets"),
    ({"gated": 3}, ValueError, "gated must be at most 2, the number of skips, got 3"),
    ({"gated": 0}, ValueError, "gated must be >= 1, got 0"),
    ({"skip": None, "gated": -1}, ValueError, "gated must be >= 0, got -1"),
    ({"skip": None, "gated": 1}, ValueError, "a gate in skip for gated, got skip=None: set skip"),
    ({"skip": None, "skip_options": {"norm": True}}, ValueError, "for skip_options, got skip=None"),
    ({"skip": None, "gating": "grid"}, ValueError, "for gating='grid', got skip=None"),
    ({"skip": None, "combine": True}, ValueError, "for combine, got skip=None"),
    ({"skip": "se", "gating": "grid"}, ValueError, "a gating signal for gating='grid', got skip='se', a block"),
    ({"gating": "down"}, ValueError, "gating must be one of 'up', 'grid', got 'down'"),
    ({"concat": "both"}, ValueError, "concat must be one of 'skip_first', 'up_first', got 'both'"),
    ({"decoder": "single"}, ValueError, "decoder must be one of 'double', 'merge', got 'single'"),
    ({"block": "ska"}, ValueError, "unknown block 'ska'"),
    ({"block": "attention_gate"}, ValueError, "block with one input, got 'attention_gate' with 2: set"),
    ({"block": "unet"}, ValueError, "must be names of blocks, got 'unet', the name of a network"),
    ({"block_options": {"reduction": 2}}, ValueError, "a block for block_options, got block=None: set"),
    ({"block": "se", "block_options": [{}, {}]}, ValueError, "block_options must be one mapping or 3, one per"),
    ({"deep_supervision": "yes"}, TypeError, "deep_supervision must be True or False, got 'yes'"),
    ({"head": "softmax"}, ValueError, "head must be one of 'linear', 'sigmoid', got 'softmax'"),
    ({"initializer": "he"}, ValueError, "initializer must be one of"),
    ({"spatial_dims": 4}, ValueError, "spatial_dims must be one of 1, 2, 3, got 4"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), INVALID, ids=[str(a)[:60] for a, _, _ in INVALID])
def test_invalid_arguments_raise(arguments, error, message):
    with pytest.raises(error) as caught:
        net(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_may_differ_by_level():
    gates, blocks = [{"inter_channels": 3}, {"norm": True}], [{}, {"reduction": 3}, {}]
    spec = net(skip_options=gates, block="se", block_options=blocks)
    assert [level.gate.inter_channels for level in spec.levels[:2]] == [3, 3]
    assert [level.gate.norm for level in spec.levels[:2]] == [False, True]
    assert [level.block.reduction for level in spec.levels] == [16, 3, 16]
