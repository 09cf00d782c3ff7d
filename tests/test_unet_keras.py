"""The Keras U-Net lives with the rest of Keras, on whichever backend Keras runs: models, files, policies, exporters."""

import json
import pickle

import numpy as np
import pytest
from nets import NETS, SMALL, build, create, image, same

import attzoo
from attzoo.adapters import adapter
from attzoo.ops.keras import find, keras
from attzoo.unet.layers import MaxPool

BACKEND = keras.backend.backend()
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason=f"TensorFlow's own, and this is {BACKEND}")
FEW = ("oktay", "strided")
few_nets = pytest.mark.parametrize("name", FEW)


@pytest.fixture(autouse=True)
def _settings():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


def net(name="leejunhyun", **kwargs):
    return build(name, "keras", "float32", **kwargs)


def picture(name="leejunhyun", first=False, dtype="float32"):
    x = image(NETS[name][1]).astype(dtype)
    return x if first else np.moveaxis(x, 1, -1)


def array(tensor):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64")))


def near(got, wanted, digits=1e-5):
    got, wanted = array(got), array(wanted)
    assert got.shape == wanted.shape
    assert abs(got - wanted).max(initial=0) <= digits * abs(wanted).max(initial=0)


# ---- pooling -------------------------------------------------------------------------------------------------

WINDOWS = pytest.mark.parametrize("window", [(2,), (3,), (2, 2), (3, 2), (4, 3), (1, 2, 2), (3, 2, 3)], ids=str)


def pooled(x, window):
    """The maximum over each window of (N, *S, C), the last ones cut off by the edge: one after the other."""
    for axis, width in enumerate(window, start=1):
        parts = [x.take(range(i, min(i + width, x.shape[axis])), axis) for i in range(0, x.shape[axis], width)]
        x = np.stack([part.max(axis) for part in parts], axis)
    return x


@WINDOWS
def test_pooling_at_every_size(window):
    """Known sizes and unknown ones; Keras's own padding "same" would cut off at both edges."""
    given = keras.Input((*(None for _ in window), 2))
    model = keras.Model(given, MaxPool(window)(given))
    for least in range(4, 8):
        x = image((1, *(least + i for i in range(len(window))), 2)).astype("float32")
        np.testing.assert_array_equal(array(MaxPool(window)(x)), pooled(x, window))
        np.testing.assert_array_equal(array(model(x)), pooled(x, window))
        if BACKEND == "tensorflow":
            np.testing.assert_array_equal(model.predict(x, verbose=0), pooled(x, window))


@pytest.mark.parametrize("size", [(7, 8), (10, 13)])
def test_a_unet_that_pools_by_three(size):
    spec = create("plain", "numpy", strides=((3, 2), 3), kernel_size=3)
    model = create("plain", "keras", strides=((3, 2), 3), kernel_size=3)
    x = image((1, 3, *size))
    wanted = spec(x, weights={key: a.astype("float64") for key, a in attzoo.weights(model).items()})
    near(model(np.moveaxis(x, 1, -1).astype("float32")), np.moveaxis(wanted, 1, -1))


# ---- a model like any other ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["leejunhyun-transpose", "oktay", "supervised", "strided"])
def test_variables_bear_canonical_names(name):
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


def test_summary_and_layers():
    lines, model = [], net("oktay")
    model.summary(print_fn=lambda line, **_: lines.append(line), line_length=120)
    text = "\n".join(lines)
    for layer in ("encoder_0_conv1", "down_1", "gating_conv", "up_1_linear", "skip_1", "concat_0", "decoder_0_norm2"):
        assert layer in text
    assert f"Total params: {model.count_params():,}" in text
    assert model.get_layer("skip_1").spec.channels == 6
    assert isinstance(model, keras.Model)
    assert (model.input_shape, model.output_shape) == ((None, None, None, 3), (None, None, None, 2))


def test_a_part_of_it_is_a_model():
    """The encoder's deepest map, by the layer's name."""
    model, x = net(), picture()
    encoder = keras.Model(model.input, model.get_layer("encoder_2_relu2").output)
    assert array(encoder(x)).shape == (2, 3, 2, 8)
    gated = keras.Model(model.input, [model.get_layer("skip_0").output, model.output])
    near(gated(x)[1], model(x), 1e-6)


def test_it_is_a_part_of_a_model(tmp_path):
    model, x = net(), picture()
    given = keras.Input((None, None, 3))
    whole = keras.Model(given, keras.layers.Softmax()(model(given)))
    whole.save(tmp_path / "whole.keras")
    again = keras.saving.load_model(tmp_path / "whole.keras")
    near(again(x), whole(x), 1e-6)
    near(array(whole(x)).sum(axis=-1), np.ones((2, 11, 6)))


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_it_learns(layout):
    """TensorFlow on a CPU has no channels-first convolution of its own; nets train all the same."""
    model = create("keras", "keras", out_channels=1, channels=(4, 6), initializer="kaiming", data_format=layout)
    first = layout == "channels_first"
    x = image((4, 3, 9, 6)).astype("float32")
    y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")
    x, y = (x, y) if first else (np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1))
    model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy")
    loss = model.fit(x, y, batch_size=4, epochs=12, verbose=0).history["loss"]
    assert loss[-1] < 0.9 * loss[0]
    near(model.predict(x, batch_size=3, verbose=0), model(x))


def test_running_statistics_move_in_training_only():
    model, x = net(), picture()
    before = attzoo.weights(model)
    model(x)
    assert all((after == before[key]).all() for key, after in attzoo.weights(model).items())
    model(x, training=True)
    for key, after in attzoo.weights(model).items():
        assert (after == before[key]).all() != key.endswith((".mean", ".var")), key


def test_frozen():
    model, x = net(), picture()
    resting = model(x)
    model.trainable = False
    assert not model.trainable_weights
    near(model(x, training=True), resting, 1e-6)
    assert not create("leejunhyun", "keras", trainable=False).trainable_weights


def test_dropout_drops_in_training_only():
    model = create("plain", "keras", dropout=(0.5, 0.5), norm=None)
    x = picture("plain")
    near(model(x), model(x), 0)
    assert abs(array(model(x, training=True)) - array(model(x))).max() > 1e-3
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.5] * 10


def test_a_seed_fixes_the_start():
    starts = []
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        starts.append(attzoo.weights(create("oktay", "keras", channels=(4, 6))))
    same, other = ([(starts[0][key] == each[key]).all() for key in starts[0]] for each in starts[1:])
    assert all(same)
    assert not all(other)


# ---- files and configs ---------------------------------------------------------------------------------------


@pytest.mark.case81
@few_nets
def test_copies(name, tmp_path):
    """By file, configuration, clone, pickle and weights: the same net."""
    model, x = net(name), picture(name)
    model.save(tmp_path / "net.keras")
    config = json.loads(json.dumps(model.get_config()))
    fresh, clone = type(model).from_config(config), keras.models.clone_model(model)
    for twin in (fresh, clone):
        twin.set_weights(model.get_weights())
    loaded, pickled = keras.saving.load_model(tmp_path / "net.keras"), pickle.loads(pickle.dumps(model))
    for twin in (fresh, clone, loaded, pickled):
        near(twin(x), model(x), 0)
    for twin in (fresh, loaded, pickled):
        assert type(twin) is type(model)
        assert twin.spec == model.spec
        assert twin.get_config() == config
        assert same(twin, model)


@pytest.mark.case81
def test_weights_file(tmp_path):
    model, other, x = net(), create("leejunhyun", "keras"), picture()
    model.save_weights(tmp_path / "net.weights.h5")
    other.load_weights(tmp_path / "net.weights.h5")
    near(other(x), model(x), 0)


def test_config_keeps_what_is_keras_own():
    own = {"data_format": "channels_first", "dtype": "mixed_bfloat16", "name": "mine"}
    model = attzoo.get("unet", backend="keras")(3, 2, (4, 6), **own)
    twin = type(model).from_config(model.get_config())
    assert (twin.name, twin.data_format, twin.dtype_policy.name) == ("mine", "channels_first", "mixed_bfloat16")
    assert twin.get_layer("skip_0").compute_dtype == "bfloat16"


def test_frozen_layers_stay_frozen(tmp_path):
    model = attzoo.get("unet", backend="keras")(3, 2, (4, 6), block="cbam")
    inside = model.get_layer("encoder_1_block")
    for layer in (model.get_layer("encoder_0_conv1"), model.get_layer("skip_0"), inside.channel.squeeze):
        layer.trainable = False
    outer = keras.Sequential([keras.Input((None, None, 3)), model])
    outer.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras").layers[0]
    for twin in (loaded, type(model).from_config(model.get_config())):
        assert [each.shape for each in twin.trainable_weights] == [each.shape for each in model.trainable_weights]
        assert not twin.get_layer("encoder_1_block").channel.squeeze.trainable
    model.get_layer("skip_0").psi.trainable = True
    twin = type(model).from_config(model.get_config())
    assert [part.trainable for part in (twin.get_layer("skip_0").psi, twin.get_layer("skip_0").gating)] == [True, False]


@pytest.mark.parametrize("copy", ["save", "get_config"])
def test_changed_settings_are_refused_where_a_copy_would_lose_them(copy, tmp_path):
    model = create("plain", "keras", dropout=(0.5, 0.5))
    model.get_layer("encoder_0_dropout1").rate = 0.1
    calls = {
        "save": lambda: model.save(tmp_path / "a.keras"),
        "get_config": model.get_config,
    }
    with pytest.raises(ValueError, match=r"expected encoder\.0\.dropout1 as it was made, .*got Dropout\(rate=0\.1"):
        calls[copy]()


# ---- layouts and precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["oktay-3d", "supervised", "strided"])
def test_channels_first(name):
    """Of an image in the other layout, the same in the other layout."""
    keras.config.set_image_data_format("channels_first")
    first = net(name)
    keras.config.set_image_data_format("channels_last")
    assert first.data_format == "channels_first"
    last, x = net(name), image(NETS[name][1])
    rank = x.ndim - 2
    assert first.input_shape == (None, 3, *(None,) * rank)
    assert first.output_shape == (None, 2, *(None,) * rank)
    near(first(x), np.moveaxis(array(last(np.moveaxis(x, 1, -1))), -1, 1), 1e-6)


POLICIES = {   # policy -> compute dtype, variable dtype, how far from the float64 meaning
    "mixed_float16": ("float16", "float32", 2e-2),
    "mixed_bfloat16": ("bfloat16", "float32", 1e-1),
    "float64": ("float64", "float64", 1e-11),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["leejunhyun", "oktay"])
def test_policy(name, policy):
    compute, variable, bound = POLICIES[policy]
    if policy == "float64" and adapter("keras").precision(policy) != policy:
        bound = 1e-4   # Keras on torch multiplies matrices in float32
    model = build(name, "keras", policy)
    y = model(picture(name, dtype="float64"))
    assert keras.backend.standardize_dtype(y.dtype) == compute
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {variable}
    weights = {key: a.astype("float64") for key, a in attzoo.weights(model).items()}
    near(y, np.moveaxis(model.spec(image(NETS[name][1]), weights=weights), 1, -1), bound)


def test_global_policy():
    keras.config.set_dtype_policy("mixed_float16")
    model = create("leejunhyun", "keras", channels=(4, 6))
    assert keras.backend.standardize_dtype(model(picture(), training=True).dtype) == "float16"
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {"float32"}


# ---- exporters and graphs ------------------------------------------------------------------------------------


@pytest.mark.case79
@tensorflow_only
def test_saved_model(tmp_path):
    """Of sizes not known when it was exported: odd, even, one pixel."""
    import tensorflow as tf

    model = net("oktay", channels=(4, 6))
    model.export(tmp_path / "net", verbose=False)
    exported = tf.saved_model.load(tmp_path / "net")
    for shape in ((2, 9, 7, 3), (1, 8, 12, 3), (3, 1, 5, 3), (1, 1, 1, 3)):
        x = image(shape).astype("float32")
        near(exported.serve(x), model(x))


@tensorflow_only
def test_training_in_a_graph_of_unknown_sizes():
    import tensorflow as tf

    model, eager = net("oktay", channels=(4, 6)), net("oktay", channels=(4, 6))
    traced = tf.function(
        lambda x: model(x, training=True), input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)]
    )
    for shape in ((2, 9, 7, 3), (3, 4, 4, 3)):
        x = image(shape).astype("float32")
        near(traced(x), eager(x, training=True), 1e-4)
    moved = attzoo.weights(model)
    for key, wanted in attzoo.weights(eager).items():
        np.testing.assert_allclose(moved[key], wanted, rtol=1e-4, atol=1e-5)


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((2, 8, 8, 4), r"expected \(N, \*S, 3\)|expected shape=\(None, None, None, 3\), found shape=\(2, 8, 8, 4\)"),
        ((2, 3, 8, 8), r"expected \(N, \*S, 3\)|expected shape=\(None, None, None, 3\), found shape=\(2, 3, 8, 8\)"),
        ((8, 8, 3), "expected"),
        ((2, 0, 8, 3), r"expected \(N, \*S, 3\) with 2 spatial axes of at least 1 each, got \(2, 0, 8, 3\)"),
    ],
)
def test_refuses_a_shape(shape, says):
    with pytest.raises(ValueError, match=says):
        net(channels=(4, 6))(np.zeros(shape, "float32"))


def test_refuses_an_argument():
    for name, value in (("data_format", "NCHW"), ("channels", 4), ("evil", 1)):
        error = TypeError if name == "evil" else ValueError
        with pytest.raises(error, match=name):
            attzoo.create("unet", backend="keras", **SMALL | {name: value})


def test_takes_what_models_take():
    """A tensor, an array of another precision."""
    model, x = net(), picture()
    for given in (keras.ops.convert_to_tensor(x), x.astype("float64")):
        near(model(given), model(x), 1e-6)
