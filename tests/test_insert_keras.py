"""Blocks put into models of Keras that somebody else wrote, exchanged and taken out again."""


import keras
import numpy as np
import pytest

import attzoo

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 8, 7, 3)).astype("float32")
SINGLE = [name for name in attzoo.names() if len(attzoo.info(name).inputs) == 1]


def network():
    """A functional model with a nested sequential one, a residual branch and a relu that is called twice."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((8, 7, 4)), layers.Conv2D(4, 3, padding="same", name="conv"),
         layers.BatchNormalization(name="bn")],
        name="inner",
    )   # fmt: skip
    relu = layers.ReLU(name="relu")
    inputs = keras.Input((8, 7, 3), name="input")
    x = relu(layers.Conv2D(4, 3, padding="same", name="stem")(inputs))
    y = layers.Conv2D(4, 1, name="last")(relu(inner(x)))
    outputs = layers.Dense(2, name="head")(layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="sum")([x, y])))
    model = keras.Model(inputs, outputs, name="net")
    model.get_layer("inner").get_layer("bn").set_weights([RNG.uniform(0.5, 2, 4) for _ in range(4)])
    return model


def output(model):
    return keras.ops.convert_to_numpy(model(X))


@pytest.mark.parametrize("name", SINGLE)
def test_identity_keeps_outputs(name):
    model = network()
    report = attzoo.attach(model, name, after="stem", start="identity")
    np.testing.assert_array_equal(output(report.model), output(model))
    assert report.model is not model
    assert len(report.model.layers) == len(model.layers) + 1
    (place,) = report
    spec = report.model.get_layer("stem_attention").block.spec
    assert (place.path, place.block, place.channels) == ("stem_attention", name, 4)
    assert place.macs == spec.macs((1, 4, 8, 7))
    assert place.parameters == 1 + sum(w.size for w in spec.weights.values() if w.trainable)


@pytest.mark.parametrize("name", SINGLE)
def test_default_computes_the_block_of_the_output(name):
    model = network()
    made = attzoo.attach(model, name, after="last").model
    block = made.get_layer("last_attention").block
    before = keras.Model(model.inputs[0], [model.get_layer("last").output, model.get_layer("sum").input[0]])
    last, x = before(X)
    expected = model.get_layer("head")(model.get_layer("pool")(x + block(last)))
    np.testing.assert_allclose(output(made), keras.ops.convert_to_numpy(expected), rtol=1e-5, atol=1e-6)


def test_the_residual_branch_is_found():
    report = attzoo.attach(network(), "se", after="residual")
    assert [place.path for place in report] == ["last_attention"]


def test_weights_are_copies():
    model = network()
    made = attzoo.attach(model, "eca", after="inner.bn", start="identity").model
    before = output(model)
    for weight in made.weights:
        weight.assign(keras.ops.ones(weight.shape))
    np.testing.assert_array_equal(output(model), before)


@pytest.mark.parametrize("after", ["stem", "inner.bn"])
def test_saved_reloaded_and_detached(after, tmp_path):
    model = network()
    report = attzoo.attach(model, "cbam", after=after, start="identity")
    report.model.get_layer("stem").trainable = False
    report.model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(output(loaded), output(model))
    taken = attzoo.detach(loaded)
    assert [place.path for place in taken] == [place.path for place in report] == [f"{after}_attention"]
    np.testing.assert_array_equal(output(taken.model), output(model))
    assert not taken.model.get_layer("stem").trainable
    with pytest.raises(ValueError, match=r"expected a model with blocks of attzoo.attach, got 'net' without any"):
        attzoo.detach(model)


def test_gamma_and_block_learn():
    made = attzoo.attach(network(), "spatial_attention", after="residual", start="identity").model
    made.compile(keras.optimizers.SGD(0.1), "mse")
    before = [keras.ops.convert_to_numpy(w) for w in made.get_layer("last_attention").trainable_weights]
    made.fit(X, np.ones((2, 2)), epochs=2, verbose=0)
    after = [keras.ops.convert_to_numpy(w) for w in made.get_layer("last_attention").trainable_weights]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_attention_maps_see_attached_blocks():
    made = attzoo.attach(network(), "cbam", after="inner.conv", start="identity").model
    with attzoo.attention_maps(made) as maps:
        made(X)
    assert {path.rpartition(".")[2]: a.shape for path, a in maps.items()} == {
        "channel": (2, 4, 1, 1), "spatial": (2, 1, 8, 7)}   # fmt: skip


def test_a_sequential_model_becomes_a_functional_one():
    model = keras.Sequential([keras.Input((8, 7, 3)), keras.layers.Conv2D(4, 1, name="conv")])
    made = attzoo.attach(model, "se", after=keras.layers.Conv2D, start="identity").model
    np.testing.assert_array_equal(output(made), output(model))


def test_channels_first_follows_the_layer():
    inputs = keras.Input((3, 8, 7))
    model = keras.Model(inputs, keras.layers.BatchNormalization(axis=1, name="bn")(inputs))
    report = attzoo.attach(model, "se", after="bn", start="identity")
    assert report.places[0].channels == 3
    assert report.model.get_layer("bn_attention").block.data_format == "channels_first"


def test_the_policy_follows_the_layer():
    inputs = keras.Input((8, 7, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 1, name="conv", dtype="mixed_bfloat16")(inputs))
    made = attzoo.attach(model, "se", after="conv", start="identity").model
    block = made.get_layer("conv_attention").block
    assert (block.compute_dtype, block.variable_dtype) == ("bfloat16", "float32")
    assert made.output.dtype == model.output.dtype


@pytest.mark.parametrize(("arguments", "message"), [
    ({"after": "stam"}, "after='stam' matches no module of net; did you mean 'stem'"),
    ({"after": "inner*"}, "after is ambiguous: it matches 'inner' and 'inner.bn' inside it"),
    ({"after": "relu"}, "expected 'relu' to be called once, got a layer that the model calls several times"),
    ({"after": "input"}, "expected layers that the model calls, got 'input', which it does not"),
    ({"after": "pool"}, "expected a tensor with 1 to 3 spatial axes from 'pool'"),
    ({"after": "stem", "reduction": 0}, "se at 'stem': reduction must be >= 1, got 0"),
    ({"after": "stem", "start": "zero"}, "start must be one of"),
])   # fmt: skip
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        attzoo.attach(network(), "se", **arguments)


def chain(*layers, inputs=(8, 7, 3), **options):
    """A functional model that calls layers one after the other."""
    x = start = keras.Input(inputs)
    for layer in layers:
        x = layer(x)
    return keras.Model(start, x, **options)


def test_frozen_layers_of_nested_models_stay_frozen():
    model = network()
    model.get_layer("inner").get_layer("conv").trainable = False
    timed = keras.layers.TimeDistributed(keras.layers.Dense(3), name="timed")
    outer = chain(timed, model)
    timed.layer.trainable = False
    made = attzoo.attach(outer, "se", after="net.inner.conv").model
    attached = made.get_layer("net").get_layer("inner").get_layer("conv_attention")
    assert len(made.trainable_weights) == len(outer.trainable_weights) + len(attached.weights)
    outer.trainable = False
    made = attzoo.attach(outer, "se", after="net.inner.conv").model
    attached = made.get_layer("net").get_layer("inner").get_layer("conv_attention")
    assert not made.get_layer("net").get_layer("stem").trainable
    assert len(attached.trainable_weights) == len(attached.weights)


def test_a_layer_in_two_nested_models_stays_one():
    shared = keras.layers.Conv2D(3, 1, name="shared")
    a, b = chain(shared, name="a"), chain(shared, name="b")
    inputs = keras.Input((8, 7, 3))
    model = keras.Model(inputs, keras.layers.ReLU(name="out")(keras.layers.Add()([a(inputs), b(inputs)])))
    made = attzoo.attach(model, "se", after="out", start="identity")
    assert made.model.count_params() == model.count_params() + made.parameters
    np.testing.assert_array_equal(output(made.model), output(model))
    with pytest.raises(ValueError, match=r"expected 'a.shared' to be called once"):
        attzoo.attach(model, "se", after="a.shared")


def test_layers_that_compute_with_other_arrays_than_their_weights():
    norm = keras.layers.Normalization()
    norm.adapt(3 * X + 1)
    model = chain(norm, keras.layers.Lambda(lambda x: 2 * x), keras.layers.Conv2D(4, 1, name="conv"))
    made = attzoo.attach(model, "se", after="conv", start="identity").model
    np.testing.assert_array_equal(output(made), output(model))


@pytest.mark.parametrize("start", ["identity", "default"])
def test_masks_pass(start):
    model = chain(keras.layers.Embedding(10, 4, mask_zero=True, name="words"), keras.layers.LSTM(3), inputs=(5,))
    made = attzoo.attach(model, "se", after="words", start=start).model
    with_block = made.get_layer("words_attention").output
    assert with_block._keras_mask is not None
    if start == "identity":
        words = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]])
        got, expected = (keras.ops.convert_to_numpy(net(words)) for net in (made, model))
        np.testing.assert_array_equal(got, expected)


def test_attaching_twice_is_refused():
    made = attzoo.attach(network(), "se", after="inner.conv").model
    with pytest.raises(ValueError, match=r"expected no layer 'inner.conv_attention', got .*: detach it first"):
        attzoo.attach(made, "se", after="inner.conv")


def test_a_residual_branch_from_the_input_of_a_model_to_an_operation():
    inputs = keras.Input((8, 7, 3))
    model = keras.Model(inputs, inputs + 0.5 * keras.layers.Conv2D(3, 1)(inputs))
    report = attzoo.attach(model, "se", after="residual", start="identity")
    assert [place.path for place in report] == ["multiply_attention"]
    np.testing.assert_array_equal(output(report.model), output(model))


def test_the_data_format_follows_the_other_layers():
    layers = keras.layers
    model = chain(layers.BatchNormalization(axis=1), layers.ReLU(name="relu"), inputs=(3, 8, 7))
    (place,) = attzoo.attach(model, "se", after="relu")
    assert place.channels == 3
    model = chain(layers.BatchNormalization(axis=1), layers.ReLU(name="relu"), layers.BatchNormalization(),
                  inputs=(3, 8, 7))
    with pytest.raises(ValueError, match="expected layers of one data format around 'relu', got both: give data_for"):
        attzoo.attach(model, "se", after="relu")
    (place,) = attzoo.attach(model, "se", after="relu", data_format="channels_first")
    assert place.channels == 3


def test_models_that_override_call_are_refused():
    class Doubled(keras.Sequential):
        def call(self, x, training=None, mask=None):
            return 2 * super().call(x, training=training, mask=mask)

    model = Doubled([keras.Input((8, 7, 3)), keras.layers.Conv2D(4, 1, name="conv")])
    for each in (model, chain(model)):
        with pytest.raises(ValueError, match="got Doubled, which has its own call: call the block there"):
            attzoo.attach(each, "se", after=keras.layers.Conv2D)


def test_models_without_a_graph_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="expected a functional Keras model, got Subclassed; a subclassed model calls"):
        attzoo.attach(Subclassed(), "se", after="x")
    with pytest.raises(ValueError, match="expected a built model"):
        attzoo.attach(keras.Sequential([keras.layers.Conv2D(4, 1)]), "se", after="x")
    with pytest.raises(ValueError, match="attention_gate takes x and g, and a layer returns one tensor"):
        attzoo.attach(network(), "attention_gate", after="stem")


def test_swap_exchanges_blocks_of_attzoo():
    inputs = keras.Input((8, 7, 3))
    block = attzoo.create("se", 3, backend="keras", name="block")
    model = keras.Model(inputs, keras.layers.ReLU(name="out")(block(inputs)))
    report = attzoo.swap(model, "eca", where="block", kernel_size=3)
    assert [(place.path, place.block) for place in report] == [("block", "eca")]
    assert type(report.model.get_layer("block")) is attzoo.get("eca", backend="keras")
    assert type(model.get_layer("block")) is attzoo.get("se", backend="keras")
    with pytest.raises(ValueError, match="expected a block of attzoo at 'out', got ReLU: in Keras"):
        attzoo.swap(model, "eca", where="out")
    with pytest.raises(ValueError, match="attention_gate takes x and g, and a layer returns one tensor"):
        attzoo.swap(model, "attention_gate", where="block")


def test_a_block_that_is_called_twice_is_exchanged_once():
    block = attzoo.create("se", 3, backend="keras", name="block")
    report = attzoo.swap(chain(block, block), "eca", where="block", kernel_size=3)
    assert len(report) == 1
    assert report.model.count_params() == 3
