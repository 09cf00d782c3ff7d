"""The Keras U-Net with other parts of Keras: models, files, dtype policies, exporters."""

import json
import pickle

import numpy as np
import pytest
from litert import litert_output
from nets import NETS, SMALL, build, create, have_equal_weights, image
from test_keras import array

import attzoo
from attzoo.adapters import adapter
from attzoo.ops.keras import find, keras
from attzoo.unet.layers import MaxPool

BACKEND = keras.backend.backend()
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason=f"needs Keras on TensorFlow, got {BACKEND}")
FEW = ("oktay", "strided")
few_nets = pytest.mark.parametrize("name", FEW)


@pytest.fixture(autouse=True)
def _settings():
    """Set the seed of Keras before a test, and restore its dtype policy and data format after it."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


def net(name="leejunhyun", **kwargs):
    """Return a network of NETS."""
    return build(name, "keras", "float32", **kwargs)


def input_of(name="leejunhyun", dtype="float32"):
    """Return a random input of a network of NETS, channels last."""
    return np.moveaxis(image(NETS[name][1]).astype(dtype), 1, -1)


def assert_near(actual, expected, tolerance=1e-5):
    """Assert that tensors agree, relative to the largest expected value."""
    actual, expected = array(actual), array(expected)
    assert actual.shape == expected.shape
    assert abs(actual - expected).max(initial=0) <= tolerance * abs(expected).max(initial=0)


# ---- pooling -------------------------------------------------------------------------------------------------

WINDOWS = pytest.mark.parametrize("window", [(2,), (3,), (2, 2), (3, 2), (4, 3), (1, 2, 2), (3, 2, 3)], ids=str)


def pooled(x, window):
    """Return the maximum over each window of (N, *S, C), of which the last may be smaller, axis by axis."""
    for axis, width in enumerate(window, start=1):
        parts = [x.take(range(i, min(i + width, x.shape[axis])), axis) for i in range(0, x.shape[axis], width)]
        x = np.stack([part.max(axis) for part in parts], axis)
    return x


@WINDOWS
def test_pooling_at_static_and_dynamic_sizes(window):
    """Padding "same" of Keras would have smaller windows at both edges."""
    inputs = keras.Input((*(None for _ in window), 2))
    model = keras.Model(inputs, MaxPool(window)(inputs))
    for least in range(4, 8):
        x = image((1, *(least + i for i in range(len(window))), 2)).astype("float32")
        np.testing.assert_array_equal(array(MaxPool(window)(x)), pooled(x, window))
        np.testing.assert_array_equal(array(model(x)), pooled(x, window))
        if BACKEND == "tensorflow":
            np.testing.assert_array_equal(model.predict(x, verbose=0), pooled(x, window))


@pytest.mark.parametrize("size", [(7, 8), (10, 13)])
def test_unet_with_strides_of_three(size):
    spec = create("plain", "numpy", strides=((3, 2), 3), kernel_size=3)
    model = create("plain", "keras", strides=((3, 2), 3), kernel_size=3)
    x = image((1, 3, *size))
    expected = spec(x, weights={key: array.astype("float64") for key, array in attzoo.weights(model).items()})
    assert_near(model(np.moveaxis(x, 1, -1).astype("float32")), np.moveaxis(expected, 1, -1))


# ---- use as a Keras model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["leejunhyun-transpose", "oktay", "supervised", "strided"])
def test_variables_are_found_by_canonical_names(name):
    model = create(name, "keras")
    weights = model.spec.weights
    assert len(model.weights) == len(weights)
    assert len(model.trainable_weights) == sum(weight.trainable for weight in weights.values())
    assert model.count_params() == sum(weight.size for weight in weights.values())
    for name, weight in weights.items():
        variable = find(model, name)
        assert variable.trainable == weight.trainable
        assert variable.path.replace("/", "_").startswith(name.rpartition(".")[0].replace(".", "_"))
    assert len({id(find(model, name)) for name in weights}) == len(weights)


def test_summary_shows_layers_and_parameters():
    lines, model = [], net("oktay")
    model.summary(print_fn=lambda line, **_: lines.append(line), line_length=120)
    text = "\n".join(lines)
    for layer in ("encoder_0_conv1", "down_1", "gating_conv", "up_1_linear", "skip_1", "concat_0", "decoder_0_norm2"):
        assert layer in text
    assert f"Total params: {model.count_params():,}" in text
    assert model.get_layer("skip_1").spec.channels == 6
    assert isinstance(model, keras.Model)
    assert (model.input_shape, model.output_shape) == ((None, None, None, 3), (None, None, None, 2))


def test_layers_can_be_outputs_of_other_models():
    """By the names of the layers."""
    model, x = net(), input_of()
    encoder = keras.Model(model.input, model.get_layer("encoder_2_relu2").output)
    assert array(encoder(x)).shape == (2, 3, 2, 8)
    gated = keras.Model(model.input, [model.get_layer("skip_0").output, model.output])
    assert_near(gated(x)[1], model(x), 1e-6)


def test_network_can_be_a_layer_of_a_saved_model(tmp_path):
    model, x = net(), input_of()
    inputs = keras.Input((None, None, 3))
    outer = keras.Model(inputs, keras.layers.Softmax()(model(inputs)))
    outer.save(tmp_path / "outer.keras")
    loaded = keras.saving.load_model(tmp_path / "outer.keras")
    assert_near(loaded(x), outer(x), 1e-6)
    assert_near(array(outer(x)).sum(axis=-1), np.ones((2, 11, 6)))


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_network_learns_in_both_layouts(layout):
    """TensorFlow has no channels-first convolutions on CPUs, so the network transposes."""
    model = create("keras", "keras", out_channels=1, channels=(4, 6), initializer="kaiming", data_format=layout)
    is_channels_first = layout == "channels_first"
    x = image((4, 3, 9, 6)).astype("float32")
    y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")
    x, y = (x, y) if is_channels_first else (np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1))
    model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy")
    loss = model.fit(x, y, batch_size=4, epochs=12, verbose=0).history["loss"]
    assert loss[-1] < 0.9 * loss[0]
    assert_near(model.predict(x, batch_size=3, verbose=0), model(x))


def test_running_statistics_are_updated_only_in_training():
    model, x = net(), input_of()
    weights_before = attzoo.weights(model)
    model(x)
    assert all((after == weights_before[key]).all() for key, after in attzoo.weights(model).items())
    model(x, training=True)
    for key, after in attzoo.weights(model).items():
        assert (after == weights_before[key]).all() != key.endswith((".mean", ".var")), key


def test_frozen_network_uses_running_statistics():
    model, x = net(), input_of()
    inference = model(x)
    model.trainable = False
    assert not model.trainable_weights
    assert_near(model(x, training=True), inference, 1e-6)
    assert not create("leejunhyun", "keras", trainable=False).trainable_weights


def test_dropout_is_active_only_in_training():
    model = create("plain", "keras", dropout=(0.5, 0.5), norm=None)
    x = input_of("plain")
    assert_near(model(x), model(x), 0)
    assert abs(array(model(x, training=True)) - array(model(x))).max() > 1e-3
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.5] * 10


def test_seed_determines_the_initialization():
    initial_weights = []
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        initial_weights.append(attzoo.weights(create("oktay", "keras", channels=(4, 6))))
    first_weights, same_seed, other_seed = initial_weights
    assert all((first_weights[key] == same_seed[key]).all() for key in first_weights)
    assert not all((first_weights[key] == other_seed[key]).all() for key in first_weights)


# ---- files and configs ---------------------------------------------------------------------------------------


@pytest.mark.case81
@few_nets
def test_copies_give_the_same_outputs(name, tmp_path):
    """By file, config, clone and pickle."""
    model, x = net(name), input_of(name)
    model.save(tmp_path / "net.keras")
    config = json.loads(json.dumps(model.get_config()))
    from_config, cloned = type(model).from_config(config), keras.models.clone_model(model)
    for loaded in (from_config, cloned):
        loaded.set_weights(model.get_weights())
    loaded_model, unpickled_model = keras.saving.load_model(tmp_path / "net.keras"), pickle.loads(pickle.dumps(model))
    for loaded in (from_config, cloned, loaded_model, unpickled_model):
        assert_near(loaded(x), model(x), 0)
    for loaded in (from_config, loaded_model, unpickled_model):
        assert type(loaded) is type(model)
        assert loaded.spec == model.spec
        assert loaded.get_config() == config
        assert have_equal_weights(loaded, model)


@pytest.mark.case81
def test_weights_file_restores_the_weights(tmp_path):
    model, restored, x = net(), create("leejunhyun", "keras"), input_of()
    model.save_weights(tmp_path / "net.weights.h5")
    restored.load_weights(tmp_path / "net.weights.h5")
    assert_near(restored(x), model(x), 0)


def test_config_has_the_arguments_of_keras():
    keras_arguments = {"data_format": "channels_first", "dtype": "mixed_bfloat16", "name": "mine"}
    model = attzoo.get("unet", backend="keras")(3, 2, (4, 6), **keras_arguments)
    twin = type(model).from_config(model.get_config())
    assert (twin.name, twin.data_format, twin.dtype_policy.name) == ("mine", "channels_first", "mixed_bfloat16")
    assert twin.get_layer("skip_0").compute_dtype == "bfloat16"


def test_frozen_layers_stay_frozen_in_copies(tmp_path):
    model = attzoo.get("unet", backend="keras")(3, 2, (4, 6), block="cbam")
    inner_layer = model.get_layer("encoder_1_block")
    for layer in (model.get_layer("encoder_0_conv1"), model.get_layer("skip_0"), inner_layer.channel.squeeze):
        layer.trainable = False
    outer = keras.Sequential([keras.Input((None, None, 3)), model])
    outer.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras").layers[0]
    for copied in (loaded, type(model).from_config(model.get_config())):
        assert [v.shape for v in copied.trainable_weights] == [v.shape for v in model.trainable_weights]
        assert not copied.get_layer("encoder_1_block").channel.squeeze.trainable
    model.get_layer("skip_0").psi.trainable = True
    copied = type(model).from_config(model.get_config())
    gate = copied.get_layer("skip_0")
    assert (gate.psi.trainable, gate.gating.trainable) == (True, False)


@pytest.mark.parametrize("method", ["save", "get_config"])
def test_copying_a_network_with_changed_layers_raises(method, tmp_path):
    model = create("plain", "keras", dropout=(0.5, 0.5))
    model.get_layer("encoder_0_dropout1").rate = 0.1
    args = (tmp_path / "a.keras",) if method == "save" else ()
    message = r"expected encoder\.0\.dropout1 to be Dropout\(rate=0\.5.*as the model creates it, got Dropout\(rate=0\.1"
    message += r".*\): undo the change, or save only the weights, with save_weights\(\)$"
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(*args)


# ---- layouts and precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["oktay-3d", "supervised", "strided"])
def test_channels_first_gives_the_same_outputs(name):
    """After a transposition."""
    keras.config.set_image_data_format("channels_first")
    channels_first_model = net(name)
    keras.config.set_image_data_format("channels_last")
    assert channels_first_model.data_format == "channels_first"
    last, x = net(name), image(NETS[name][1])
    rank = x.ndim - 2
    assert channels_first_model.input_shape == (None, 3, *(None,) * rank)
    assert channels_first_model.output_shape == (None, 2, *(None,) * rank)
    assert_near(channels_first_model(x), np.moveaxis(array(last(np.moveaxis(x, 1, -1))), -1, 1), 1e-6)


POLICIES = {   # policy -> compute dtype, variable dtype, tolerance to the spec in float64
    "mixed_float16": ("float16", "float32", 2e-2),
    "mixed_bfloat16": ("bfloat16", "float32", 1e-1),
    "float64": ("float64", "float64", 1e-11),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["leejunhyun", "oktay"])
def test_dtype_policy_of_the_network(name, policy):
    compute, variable, bound = POLICIES[policy]
    if policy == "float64" and adapter("keras").precision(policy) != policy:
        bound = 1e-4   # Keras on torch multiplies matrices in float32
    model = build(name, "keras", policy)
    y = model(input_of(name, dtype="float64"))
    assert keras.backend.standardize_dtype(y.dtype) == compute
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {variable}
    weights = {key: array.astype("float64") for key, array in attzoo.weights(model).items()}
    assert_near(y, np.moveaxis(model.spec(image(NETS[name][1]), weights=weights), 1, -1), bound)


def test_global_dtype_policy():
    keras.config.set_dtype_policy("mixed_float16")
    model = create("leejunhyun", "keras", channels=(4, 6))
    assert keras.backend.standardize_dtype(model(input_of(), training=True).dtype) == "float16"
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {"float32"}


# ---- exporters and graphs ------------------------------------------------------------------------------------


@pytest.mark.case79
@tensorflow_only
def test_saved_model_accepts_every_size(tmp_path):
    """Odd, even and one pixel."""
    import tensorflow as tf

    model = net("oktay", channels=(4, 6))
    model.export(tmp_path / "net", verbose=False)
    exported = tf.saved_model.load(tmp_path / "net")
    for shape in ((2, 9, 7, 3), (1, 8, 12, 3), (3, 1, 5, 3), (1, 1, 1, 3)):
        x = image(shape).astype("float32")
        assert_near(exported.serve(x), model(x))


@pytest.mark.case80
@tensorflow_only
def test_litert_model_of_a_unet_equals_the_unet(tmp_path):
    inputs = keras.Input((10, 7, 3), 1)
    model = keras.Model(inputs, net("oktay", channels=(4, 6))(inputs))
    x = image((1, 10, 7, 3)).astype("float32")
    assert_near(litert_output(model, [x], tmp_path), model(x))


@tensorflow_only
def test_training_in_a_graph_with_dynamic_sizes():
    import tensorflow as tf

    model, eager = net("oktay", channels=(4, 6)), net("oktay", channels=(4, 6))
    traced = tf.function(
        lambda x: model(x, training=True), input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)]
    )
    for shape in ((2, 9, 7, 3), (3, 4, 4, 3)):
        x = image(shape).astype("float32")
        assert_near(traced(x), eager(x, training=True), 1e-4)
    updated = attzoo.weights(model)
    for key, expected in attzoo.weights(eager).items():
        np.testing.assert_allclose(updated[key], expected, rtol=1e-4, atol=1e-5)


# ---- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 8, 4), r"expected \(N, \*S, 3\)|expected shape=\(None, None, None, 3\), found shape=\(2, 8, 8, 4\)"),
        ((2, 3, 8, 8), r"expected \(N, \*S, 3\)|expected shape=\(None, None, None, 3\), found shape=\(2, 3, 8, 8\)"),
        ((8, 8, 3), "expected"),
        ((2, 0, 8, 3), r"expected \(N, \*S, 3\) with 2 spatial axes of at least 1 each, got \(2, 0, 8, 3\)"),
    ],
)
def test_invalid_shape_raises(shape, message):
    with pytest.raises(ValueError, match=message):
        net(channels=(4, 6))(np.zeros(shape, "float32"))


def test_invalid_argument_raises():
    for name, value in (("data_format", "NCHW"), ("channels", 4), ("evil", 1)):
        error = TypeError if name == "evil" else ValueError
        with pytest.raises(error, match=name):
            attzoo.create("unet", backend="keras", **SMALL | {name: value})


def test_tensors_and_float64_arrays_are_accepted():
    model, x = net(), input_of()
    for value in (keras.ops.convert_to_tensor(x), x.astype("float64")):
        assert_near(model(value), model(x), 1e-6)
