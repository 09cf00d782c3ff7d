"""Blocks and U-Nets that Keras has quantized can be saved and loaded; others raise an error."""

import numpy as np
import pytest
from samples import SAMPLES, Sample
from targets import without_matrices

import attzoo
import attzoo.keras  # triton before TensorFlow
from attzoo.ops.keras import keras
from attzoo.ops.keras_layers import POLICIES

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")   # of other layers


def random_input(*shape):
    """Return random float32 numbers."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def to_array(tensor):
    """Return a tensor of any backend as a NumPy array."""
    return keras.ops.convert_to_numpy(tensor)


def saved_and_loaded(model, folder):
    """Save a model and return the loaded one."""
    model.save(folder / "a.keras")
    return keras.models.load_model(folder / "a.keras")


def model_of(block, *shapes):
    """Return a functional model of one block."""
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], block(*inputs))


def test_quantized_unet_can_be_saved_and_loaded(tmp_path):
    net = attzoo.create("unet", 1, 2, (4, 8), backend="keras", block="se", norm=None)
    image = random_input(1, 8, 8, 1)
    before = to_array(net(image))
    net.quantize("int8")
    after = to_array(net(image))
    assert 0 < abs(after - before).max() < 0.5 * np.ptp(before)
    loaded = saved_and_loaded(net, tmp_path)
    np.testing.assert_array_equal(to_array(loaded(image)), after)
    dtypes = [{path: entry["dtype"] for path, entry in model.get_config()[POLICIES].items()} for model in (net, loaded)]
    assert dtypes[0] == dtypes[1]
    assert {"encoder_0_block/squeeze", "skip_0/psi", "head"} <= dtypes[0].keys()


WITHOUT_MATRICES = without_matrices("keras")
CASES = [(name, SAMPLES[name], "int8", "its model") for name in attzoo.names() if name not in WITHOUT_MATRICES]
CASES += [
    ("se", Sample("se", {"channels": 8, "reduction": 2}, ((2, 8, 6, 5),)), "int4", "the block"),
    ("cbam", SAMPLES["cbam"], "int8", "the block"),
    ("channel_attention", Sample("channel_attention", {"channels": 8, "reduction": 2}, ((2, 8, 7),)), "float8",
     "its model"),
]


@pytest.mark.parametrize(("name", "sample", "mode", "quantized"), CASES)
def test_quantized_block_can_be_saved_and_loaded(name, sample, mode, quantized, tmp_path):
    block, rng = sample.create("keras"), np.random.default_rng(0)
    attzoo.load_weights(block, {name: rng.uniform(0.05, 0.2, w.shape).astype(np.float32)   # no unit is 0 or saturated
                                for name, w in block.spec.weights.items()})   # fmt: skip
    shapes = [(*space, channels) for _, channels, *space in sample.shapes]
    model = model_of(block, *shapes)
    inputs = [random_input(2, *shape) for shape in shapes]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    output_before = np.asarray(model(inputs))
    (block if quantized == "the block" else model).quantize(mode)
    after = np.asarray(model(inputs))
    assert 0 < abs(after - output_before).max() < 0.5 * np.ptp(output_before)
    np.testing.assert_array_equal(np.asarray(saved_and_loaded(model, tmp_path)(inputs)), after)
    entry = block.get_config()[POLICIES]
    assert entry
    assert all(policy["dtype"]["config"]["mode"].startswith(mode) for policy in entry.values())
    with pytest.raises(ValueError, match="already quantized"):
        block.quantize(mode)
    with pytest.raises(ValueError, match=rf"values quantized by Keras \({mode}\): read the weights before quantize"):
        attzoo.save(block, tmp_path / "a.safetensors")


def test_quantizers_are_preserved_by_saving(tmp_path):
    config = keras.quantizers.Int8QuantizationConfig(
        weight_quantizer=keras.quantizers.AbsMaxQuantizer(axis=0, value_range=(-7, 7)),
        activation_quantizer=None,
    )
    block = attzoo.create("se", 8, 2, backend="keras")
    net = attzoo.create("unet", 1, 2, (2, 4), backend="keras", skip=None)
    for model, shape in ((model_of(block, (6, 5, 8)), (2, 6, 5, 8)), (net, (1, 8, 8, 1))):
        model.quantize(config=config)
        after = np.asarray(model(random_input(*shape)))
        np.testing.assert_array_equal(np.asarray(saved_and_loaded(model, tmp_path)(random_input(*shape))), after)


def test_dtype_policy_of_an_inner_layer_is_in_the_config(tmp_path):
    block = attzoo.create("cbam", 8, 2, backend="keras")
    block.channel.squeeze.dtype_policy = "mixed_bfloat16"
    config = block.get_config()
    assert list(config[POLICIES]) == ["channel/squeeze"]
    rebuilt = type(block).from_config(config)
    assert rebuilt.channel.squeeze.compute_dtype == "bfloat16"
    assert rebuilt.channel.excite.compute_dtype == "float32"
    with pytest.raises(ValueError, match="expected a layer channel/nothing in CBAM, as in the config, got none"):
        type(block).from_config(config | {POLICIES: {"channel/nothing": config[POLICIES]["channel/squeeze"]}})


def test_dtype_policy_map_is_preserved_by_saving(tmp_path):
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="mixed_bfloat16")
    model = model_of(attzoo.create("se", 8, 2, backend="keras", dtype=policies), (6, 5, 8))
    after = np.asarray(model(random_input(2, 6, 5, 8)))
    np.testing.assert_array_equal(np.asarray(saved_and_loaded(model, tmp_path)(random_input(2, 6, 5, 8))), after)




@pytest.mark.parametrize("dtype", [None, "float16", "mixed_bfloat16"])
def test_config_of_an_unchanged_block_has_no_inner_policies(dtype):
    blocks = [attzoo.info(name).create(8, backend="keras", dtype=dtype) for name in attzoo.names()]
    for block in (*blocks, attzoo.create("unet", 1, 2, (2, 4), backend="keras", dtype=dtype)):
        assert POLICIES not in block.get_config()


@pytest.mark.parametrize("name", WITHOUT_MATRICES)
def test_quantizing_a_block_without_matrices_raises(name):
    block = attzoo.info(name).create(8, backend="keras")
    block(*(random_input(1, 4, 4, 8) for _ in block.spec.inputs))
    with pytest.raises(NotImplementedError, match=rf"with dense layers, .* {type(block).__name__}, which has none"):
        block.quantize("int8")
