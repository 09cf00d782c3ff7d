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
    inputs = keras.Input((8, 7, 3))
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
        weight.assign(keras.ops.ones_like(weight))
    np.testing.assert_array_equal(output(model), before)


@pytest.mark.parametrize("after", ["stem", "inner", "inner.bn"])
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
    ({"after": "pool"}, "expected a tensor with 1 to 3 spatial axes from 'pool'"),
    ({"after": "stem", "reduction": 0}, "se at 'stem': reduction must be >= 1, got 0"),
    ({"after": "stem", "start": "zero"}, "start must be one of"),
])   # fmt: skip
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        attzoo.attach(network(), "se", **arguments)


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
