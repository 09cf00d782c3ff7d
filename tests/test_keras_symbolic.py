"""Keras blocks take what only stands for a tensor, or holds one: KerasTensor into `attention`, and variables."""

import json

import numpy as np
import pytest
from samples import LAST_OF_EACH, SAMPLES
from test_keras import BACKEND, LAST, LAYOUTS, array, inputs, layouts, liven, off, order, tensorflow_only

import attzoo
from attzoo.ops.keras import keras

every_sample = pytest.mark.parametrize("sample", [SAMPLES[name] for name in LAST_OF_EACH], ids=LAST_OF_EACH)


def attending(sample, layout=LAST, known=False, **kwargs):
    """A model that returns a block's output and its coefficients, and the block."""
    shapes = [order(s if known else (s[0], s[1], *(None,) * (len(s) - 2)), layout)[1:] for s in sample.shapes]
    given = [keras.Input(shape) for shape in shapes]
    block = sample.create("keras", data_format=layout, **kwargs)
    model = keras.Model(given, [block(*given), block.attention(*given)])
    return model, liven(block)


def assert_attends(model, block, xs):
    y, coefficients = model(xs)
    np.testing.assert_array_equal(array(coefficients), array(block.attention(*map(keras.ops.convert_to_tensor, xs))))
    np.testing.assert_array_equal(array(y), array(block(*map(keras.ops.convert_to_tensor, xs))))


@every_sample
def test_attention_of_a_functional_model(sample):
    layout = LAYOUTS[len(sample.shapes[0]) % 2]
    model, block = attending(sample, layout)
    for more in (0, 1):
        assert_attends(model, block, inputs(sample, layout, more=more))
    assert len(model.weights) == len(block.weights)
    shape = attending(sample, layout, known=True)[0].outputs[1].shape
    assert shape[1:] == block.attention(*inputs(sample, layout)).shape[1:]


@every_sample
def test_it_is_saved_and_reloaded(sample, tmp_path):
    model, block = attending(sample)
    model.save(tmp_path / "model.keras")
    twin = keras.models.load_model(tmp_path / "model.keras")
    for got, wanted in zip(twin(inputs(sample)), model(inputs(sample)), strict=True):
        np.testing.assert_array_equal(array(got), array(wanted))
    assert len(twin.weights) == len(block.weights)
    model.save_weights(tmp_path / "model.weights.h5")
    copies = [keras.models.clone_model(model), keras.models.model_from_json(model.to_json())]
    for twin in copies:
        twin.load_weights(tmp_path / "model.weights.h5")
        assert_attends(twin, block, inputs(sample))


def test_attention_of_several_inputs_and_by_name(tmp_path):
    gate = attzoo.create("attention_gate", 8, 6, backend="keras", norm=True)
    se = attzoo.create("se", 8, backend="keras")
    x, other, g = keras.Input((4, 5, 8)), keras.Input((4, 5, 8)), keras.Input((2, 3, 6))
    of_gate = gate.attention(x, g=g), gate.attention(x=other, g=g, training=False)
    model = keras.Model([x, other, g], [*of_gate, se.attention(x), se.attention(other)])
    liven(gate)
    model.save(tmp_path / "model.keras")
    twin = keras.models.load_model(tmp_path / "model.keras")
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=(2, *t.shape[1:])).astype("float32") for t in (x, other, g))
    wanted = [gate.attention(a, c), gate.attention(b, c), se.attention(a), se.attention(b)]
    for got, each in zip(twin([a, b, c]), wanted, strict=True):
        assert off(got, each) < 1e-6


def test_it_trains_and_is_shown_by_maps():
    x = keras.Input((4, 5, 8))
    block = attzoo.create("cbam", 8, backend="keras", reduction=2, kernel_size=3, norm=True)
    model = keras.Model(x, keras.layers.Multiply()([x, block.attention(x)]))
    before = attzoo.weights(block)
    model.compile("sgd", "mse")
    images = np.random.default_rng(0).normal(size=(4, 4, 5, 8)).astype("float32")
    model.fit(images, images, epochs=1, verbose=0)
    after = attzoo.weights(block)
    assert not any(np.array_equal(before[key], after[key]) for key in ("spatial.norm.mean", "channel.squeeze.weight"))
    with attzoo.attention_maps(model) as maps:
        model(images)
    assert list(maps) == [f"{block.name}.channel", f"{block.name}.spatial", block.name]


def test_a_layer_of_others_that_attends(tmp_path):
    @keras.saving.register_keras_serializable(package="tests")
    class Weighs(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.block = attzoo.create("se", 8, backend="keras")

        def build(self, shape):
            self.block.build(shape)

        def call(self, x):
            return keras.ops.mean(x * self.block.attention(x), axis=(1, 2))

    x = keras.Input((None, None, 8))
    model = keras.Model(x, Weighs()(x))
    images = np.ones((2, 3, 4, 8), "float32")
    model.save(tmp_path / "model.keras")
    twin = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(twin(images)), array(model(images)))


def test_a_policy_holds_for_attention():
    x = keras.Input((4, 5, 8))
    block = attzoo.create("spatial_attention", 8, backend="keras", dtype="mixed_float16")
    coefficients = block.attention(x)
    assert coefficients.shape == (None, 4, 5, 1)
    assert coefficients.dtype == "float16"


def test_a_symbolic_input_of_a_wrong_shape_is_refused():
    block = attzoo.create("se", 8, backend="keras")
    with pytest.raises(ValueError, match=r"expected \(N, \*S, 8\)"):
        block.attention(keras.Input((4, 5, 7)))


def variables():
    """Ways to hold a tensor in a variable."""
    yield "Keras", lambda x: keras.Variable(x)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        yield "TensorFlow", tf.Variable
        yield "TensorFlow, of a free shape", lambda x: tf.Variable(x, shape=(None, *x.shape[1:]))
    if BACKEND == "torch":
        import torch

        yield "torch", lambda x: torch.nn.Parameter(torch.from_numpy(x))


VARIABLES = dict(variables())


@pytest.mark.parametrize("kind", VARIABLES)
@layouts
@every_sample
def test_variables(sample, layout, kind):
    block, xs = liven(sample.create("keras", data_format=layout)), inputs(sample, layout)
    held = [VARIABLES[kind](x) for x in xs]
    np.testing.assert_array_equal(array(block(*held)), array(block(*xs)))
    wanted = block.attention(*map(keras.ops.convert_to_tensor, xs))
    np.testing.assert_array_equal(array(block.attention(*held)), array(wanted))


@tensorflow_only
@every_sample
def test_gradients_of_variables(sample):
    import tensorflow as tf

    block = liven(sample.create("keras"))
    xs = [tf.Variable(x) for x in inputs(sample)]
    tensors = [tf.convert_to_tensor(x) for x in inputs(sample)]
    found = []
    for given in (xs, tensors):
        with tf.GradientTape() as tape:
            tape.watch(given)
            y = block(*given) * 2
        found.append(tape.gradient(y, given))
    for got, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(array(got), array(wanted), rtol=1e-5, atol=1e-6)


@tensorflow_only
def test_a_unet_takes_a_variable():
    import tensorflow as tf

    net = attzoo.create("unet", 3, 2, (4, 6), backend="keras")
    x = np.random.default_rng(0).normal(size=(1, 6, 5, 3)).astype("float32")
    np.testing.assert_array_equal(array(net(tf.Variable(x))), array(net(x)))


@tensorflow_only
def test_a_saved_model_of_attention(tmp_path):
    import tensorflow as tf

    sample = SAMPLES["cbam"]
    model, _ = attending(sample)
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    for got, wanted in zip(loaded.serve(inputs(sample)), model(inputs(sample)), strict=True):
        assert off(got, wanted) < 1e-6


def test_the_file_names_the_block_and_none_of_its_layers(tmp_path):
    x = keras.Input((4, 5, 8))
    model = keras.Model(x, attzoo.create("se", 8, backend="keras").attention(x))
    layers = json.loads(model.to_json())["config"]["layers"]
    assert [layer["registered_name"] for layer in layers] == [None, "attzoo>SE"]


def test_a_tensor_beside_a_symbolic_input(tmp_path):
    gate, x = attzoo.create("attention_gate", 8, 6, backend="keras"), keras.Input((5, 4, 8))
    g = np.ones((2, 3, 2, 6), "f4")
    model = keras.Model(x, gate(x, g))
    model.save(tmp_path / "a.keras")
    image = np.random.default_rng(0).random((2, 5, 4, 8), "f4")
    for each in (model, keras.models.load_model(tmp_path / "a.keras")):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (each(image), gate(image, g))), rtol=1e-6)
