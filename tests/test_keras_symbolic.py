"""Keras blocks accept variables, and `attention` accepts a KerasTensor."""

import json

import numpy as np
import pytest
from samples import LAST_OF_EACH, SAMPLES
from test_keras import (
    BACKEND,
    LAST,
    LAYOUTS,
    array,
    inputs,
    layouts,
    randomize,
    relative_error,
    tensorflow_only,
    to_layout,
)

import attzoo
from attzoo.contract import by_name
from attzoo.ops.keras import keras

every_sample = pytest.mark.parametrize("sample", [SAMPLES[name] for name in LAST_OF_EACH], ids=LAST_OF_EACH)


def model_with_attention(sample, layout=LAST, fixed_sizes=False, **kwargs):
    """Return a model of the output and the coefficients of a block, and the block."""
    shapes = [to_layout(s if fixed_sizes else (s[0], s[1], *(None,) * (len(s) - 2)), layout)[1:] for s in sample.shapes]
    tensors = [keras.Input(shape) for shape in shapes]
    block = sample.create("keras", data_format=layout, **kwargs)
    coefficients = block.attention(*tensors)   # first, as Keras 3.15 raises if a later call has more outputs
    model = keras.Model(tensors, [block(*tensors), *by_name(coefficients).values()])
    return model, randomize(block)


def assert_equals_block(model, block, xs):
    """Assert that a model has the output and the coefficients of a block."""
    y, *coefficients = model(xs)
    expected = by_name(block.attention(*map(keras.ops.convert_to_tensor, xs)))
    for got, tensor in zip(coefficients, expected.values(), strict=True):
        np.testing.assert_array_equal(array(got), array(tensor))
    np.testing.assert_array_equal(array(y), array(block(*map(keras.ops.convert_to_tensor, xs))))


@every_sample
def test_functional_model_with_attention_equals_the_block(sample):
    layout = LAYOUTS[len(sample.shapes[0]) % 2]
    model, block = model_with_attention(sample, layout)
    for increase in (0, 1):
        assert_equals_block(model, block, inputs(sample, layout, increase=increase))
    assert len(model.weights) == len(block.weights)
    outputs = model_with_attention(sample, layout, fixed_sizes=True)[0].outputs[1:]
    coefficients = by_name(block.attention(*inputs(sample, layout))).values()
    assert [tensor.shape[1:] for tensor in outputs] == [tensor.shape[1:] for tensor in coefficients]


@every_sample
@pytest.mark.one_of_each(share=3)
def test_saved_model_with_attention_can_be_loaded(sample, tmp_path):
    model, block = model_with_attention(sample)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for actual, expected in zip(loaded(inputs(sample)), model(inputs(sample)), strict=True):
        np.testing.assert_array_equal(array(actual), array(expected))
    assert len(loaded.weights) == len(block.weights)
    model.save_weights(tmp_path / "model.weights.h5")
    copies = [keras.models.clone_model(model), keras.models.model_from_json(model.to_json())]
    for loaded in copies:
        loaded.load_weights(tmp_path / "model.weights.h5")
        assert_equals_block(loaded, block, inputs(sample))


def test_attention_accepts_keyword_arguments(tmp_path):
    gate = attzoo.create("attention_gate", 8, 6, backend="keras", norm=True)
    se = attzoo.create("se", 8, backend="keras")
    x1, x2, g = keras.Input((4, 5, 8)), keras.Input((4, 5, 8)), keras.Input((2, 3, 6))
    coefficients = gate.attention(x1, g=g), gate.attention(x=x2, g=g, training=False)
    model = keras.Model([x1, x2, g], [*coefficients, se.attention(x1), se.attention(x2)])
    randomize(gate)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    rng = np.random.default_rng(0)
    new_x1, new_x2, new_g = (rng.normal(size=(2, *tensor.shape[1:])).astype("float32") for tensor in (x1, x2, g))
    expected = [
        gate.attention(new_x1, new_g),
        gate.attention(new_x2, new_g),
        se.attention(new_x1),
        se.attention(new_x2),
    ]
    for actual, reference in zip(loaded([new_x1, new_x2, new_g]), expected, strict=True):
        assert relative_error(actual, reference) < 1e-6


def test_model_with_attention_can_be_trained_and_mapped():
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


def test_custom_layer_that_uses_attention_can_be_reloaded(tmp_path):
    @keras.saving.register_keras_serializable(package="tests")
    class WeightedMean(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.block = attzoo.create("se", 8, backend="keras")

        def build(self, shape):
            self.block.build(shape)

        def call(self, x):
            return keras.ops.mean(x * self.block.attention(x), axis=(1, 2))

    x = keras.Input((None, None, 8))
    model = keras.Model(x, WeightedMean()(x))
    images = np.ones((2, 3, 4, 8), "float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded(images)), array(model(images)))


def test_dtype_policy_applies_to_attention():
    x = keras.Input((4, 5, 8))
    block = attzoo.create("spatial_attention", 8, backend="keras", dtype="mixed_float16")
    coefficients = block.attention(x)
    assert coefficients.shape == (None, 4, 5, 1)
    assert coefficients.dtype == "float16"


def test_symbolic_input_with_a_wrong_shape_raises():
    block = attzoo.create("se", 8, backend="keras")
    with pytest.raises(ValueError, match=r"expected \(N, \*S, 8\)"):
        block.attention(keras.Input((4, 5, 7)))


def variables():
    """Yield names and functions that make a variable of an array."""
    yield "Keras", lambda x: keras.Variable(x)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        yield "TensorFlow", tf.Variable
        yield "TensorFlow, dynamic shape", lambda x: tf.Variable(x, shape=(None, *x.shape[1:]))
    if BACKEND == "torch":
        import torch

        yield "torch", lambda x: torch.nn.Parameter(torch.from_numpy(x))


VARIABLES = dict(variables())


@pytest.mark.parametrize("kind", VARIABLES)
@layouts
@every_sample
@pytest.mark.one_of_each(share=3)
def test_block_accepts_variables(sample, layout, kind):
    block, xs = randomize(sample.create("keras", data_format=layout)), inputs(sample, layout)
    variables = [VARIABLES[kind](x) for x in xs]
    np.testing.assert_array_equal(array(block(*variables)), array(block(*xs)))
    expected = by_name(block.attention(*map(keras.ops.convert_to_tensor, xs)))
    for name, tensor in by_name(block.attention(*variables)).items():
        np.testing.assert_array_equal(array(tensor), array(expected[name]))


@tensorflow_only
@every_sample
def test_gradients_of_variables_equal_those_of_tensors(sample):
    import tensorflow as tf

    block = randomize(sample.create("keras"))
    xs = [tf.Variable(x) for x in inputs(sample)]
    tensors = [tf.convert_to_tensor(x) for x in inputs(sample)]
    gradients = []
    for arguments in (xs, tensors):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = block(*arguments) * 2
        gradients.append(tape.gradient(y, arguments))
    for actual, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(array(actual), array(expected), rtol=1e-5, atol=1e-6)


@tensorflow_only
def test_unet_accepts_a_variable():
    import tensorflow as tf

    net = attzoo.create("unet", 3, 2, (4, 6), backend="keras")
    x = np.random.default_rng(0).normal(size=(1, 6, 5, 3)).astype("float32")
    np.testing.assert_array_equal(array(net(tf.Variable(x))), array(net(x)))


@tensorflow_only
def test_exported_saved_model_with_attention_equals_the_model(tmp_path):
    import tensorflow as tf

    sample = SAMPLES["cbam"]
    model, _ = model_with_attention(sample)
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    for actual, expected in zip(loaded.serve(inputs(sample)), model(inputs(sample)), strict=True):
        assert relative_error(actual, expected) < 1e-6


def test_json_of_a_model_with_attention_contains_only_the_block(tmp_path):
    x = keras.Input((4, 5, 8))
    model = keras.Model(x, attzoo.create("se", 8, backend="keras").attention(x))
    layers = json.loads(model.to_json())["config"]["layers"]
    assert [layer["registered_name"] for layer in layers] == [None, "attzoo>SE"]


def test_gate_accepts_a_symbolic_input_and_a_tensor(tmp_path):
    gate, x = attzoo.create("attention_gate", 8, 6, backend="keras"), keras.Input((5, 4, 8))
    g = np.ones((2, 3, 2, 6), "f4")
    model = keras.Model(x, gate(x, g))
    model.save(tmp_path / "a.keras")
    image = np.random.default_rng(0).random((2, 5, 4, 8), "f4")
    for loaded in (model, keras.models.load_model(tmp_path / "a.keras")):
        np.testing.assert_allclose(array(loaded(image)), array(gate(image, g)), rtol=1e-6)
