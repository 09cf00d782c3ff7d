"""Blocks and U-Nets that Keras has quantized save and reload; those that it can't quantize say so."""

import numpy as np
import pytest

import attzoo
import attzoo.keras  # triton before TensorFlow
from attzoo.ops.keras import POLICIES, keras

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")   # Keras says so of others


def x(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor)


def reloaded(model, folder):
    model.save(folder / "a.keras")
    return keras.models.load_model(folder / "a.keras")


def model_of(block, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], block(*inputs))


def test_a_quantized_unet_saves_and_reloads(tmp_path):
    net = attzoo.create("unet", 1, 2, (4, 8), backend="keras", block="se", norm=None)
    image = x(1, 8, 8, 1)
    before = numbers(net(image))
    net.quantize("int8")
    after = numbers(net(image))
    assert 0 < abs(after - before).max() < 0.5 * np.ptp(before)
    twin = reloaded(net, tmp_path)
    np.testing.assert_array_equal(numbers(twin(image)), after)
    dtypes = [{path: entry["dtype"] for path, entry in each.get_config()[POLICIES].items()} for each in (net, twin)]
    assert dtypes[0] == dtypes[1]
    assert {"encoder_0_block/squeeze", "skip_0/psi", "head"} <= dtypes[0].keys()


@pytest.mark.parametrize(("name", "args", "shapes", "mode", "by"), [
    ("se", (8, 2), [(6, 5, 8)], "int8", "its model"),
    ("se", (8, 2), [(6, 5, 8)], "int4", "the block"),
    ("cbam", (8, 2), [(6, 5, 8)], "int8", "the block"),
    ("channel_attention", (8, 2), [(7, 8)], "float8", "its model"),
    ("attention_gate", (4, 3), [(6, 5, 4), (2, 3, 3)], "int8", "its model"),
])
def test_a_quantized_block_saves_and_reloads(name, args, shapes, mode, by, tmp_path):
    block = attzoo.create(name, *args, backend="keras")
    model = model_of(block, *shapes)
    inputs = [x(2, *shape) for shape in shapes]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    before = np.asarray(model(inputs))
    (block if by == "the block" else model).quantize(mode)
    after = np.asarray(model(inputs))
    assert 0 < abs(after - before).max() < 0.5 * np.ptp(before)
    np.testing.assert_array_equal(np.asarray(reloaded(model, tmp_path)(inputs)), after)
    entry = block.get_config()[POLICIES]
    assert entry
    assert all(each["dtype"]["config"]["mode"].startswith(mode) for each in entry.values())
    with pytest.raises(ValueError, match="already quantized"):
        block.quantize(mode)
    with pytest.raises(ValueError, match=rf"codes that Keras quantized \({mode}\): take the weights before quantize"):
        attzoo.save(block, tmp_path / "a.safetensors")


def test_a_choice_of_quantizers_is_kept(tmp_path):
    config = keras.quantizers.Int8QuantizationConfig(
        weight_quantizer=keras.quantizers.AbsMaxQuantizer(axis=0, value_range=(-7, 7)),
        activation_quantizer=None,
    )
    block = attzoo.create("se", 8, 2, backend="keras")
    net = attzoo.create("unet", 1, 2, (2, 4), backend="keras", skip=None)
    for model, shape in ((model_of(block, (6, 5, 8)), (2, 6, 5, 8)), (net, (1, 8, 8, 1))):
        model.quantize(config=config)
        after = np.asarray(model(x(*shape)))
        np.testing.assert_array_equal(np.asarray(reloaded(model, tmp_path)(x(*shape))), after)


def test_a_policy_that_a_user_set_inside_is_in_the_config(tmp_path):
    block = attzoo.create("cbam", 8, 2, backend="keras")
    block.channel.squeeze.dtype_policy = "mixed_bfloat16"
    config = block.get_config()
    assert list(config[POLICIES]) == ["channel/squeeze"]
    twin = type(block).from_config(config)
    assert twin.channel.squeeze.compute_dtype == "bfloat16"
    assert twin.channel.excite.compute_dtype == "float32"
    with pytest.raises(ValueError, match="expected a layer channel/nothing in CBAM, for its settings, got none"):
        type(block).from_config(config | {POLICIES: {"channel/nothing": config[POLICIES]["channel/squeeze"]}})


def test_a_map_of_policies_is_kept(tmp_path):
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="mixed_bfloat16")
    model = model_of(attzoo.create("se", 8, 2, backend="keras", dtype=policies), (6, 5, 8))
    after = np.asarray(model(x(2, 6, 5, 8)))
    np.testing.assert_array_equal(np.asarray(reloaded(model, tmp_path)(x(2, 6, 5, 8))), after)


WITHOUT_MATRICES = [
    name for name in attzoo.names() if not any(len(w.shape) == 2 for w in attzoo.info(name).weights(8).values())
]


@pytest.mark.parametrize("dtype", [None, "float16", "mixed_bfloat16"])
def test_configs_of_what_nobody_changed_hold_no_policies_inside(dtype):
    blocks = [attzoo.info(name).create(8, backend="keras", dtype=dtype) for name in attzoo.names()]
    for block in (*blocks, attzoo.create("unet", 1, 2, (2, 4), backend="keras", dtype=dtype)):
        assert POLICIES not in block.get_config()


@pytest.mark.parametrize("name", WITHOUT_MATRICES)
def test_a_block_without_matrices_refuses(name):
    block = attzoo.info(name).create(8, backend="keras")
    block(*(x(1, 4, 4, 8) for _ in block.spec.inputs))
    with pytest.raises(NotImplementedError, match=rf"Keras quantizes dense layers, {type(block).__name__} has none"):
        block.quantize("int8")
