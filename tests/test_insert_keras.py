"""Blocks added to Keras models, replaced and removed."""

from importlib import import_module

import keras
import numpy as np
import pytest
from litert import litert_output

import attzoo

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 8, 7, 3)).astype("float32")
SINGLE = [name for name in attzoo.names() if len(attzoo.info(name).inputs) == 1]


def changes_its_input(name):
    """Whether the output of a new block differs from its input."""
    card = attzoo.info(name)
    channels = card.at_least(8)
    x = np.random.default_rng(0).normal(size=(2, 5, 4, channels)).astype(np.float32)
    return not np.array_equal(keras.ops.convert_to_numpy(card.create(channels, backend="keras")(x)), x)


CHANGING = [name for name in SINGLE if changes_its_input(name)]


def network():
    """Return a functional model with a nested sequential model, a residual branch and a relu that is called twice."""
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
    """Return the output of a model for X as an array."""
    return keras.ops.convert_to_numpy(model(X))


@pytest.mark.parametrize("name", CHANGING)
def test_identity_keeps_outputs(name):
    model = network()
    report = attzoo.attach(model, name, after="stem", start="identity", **attzoo.info(name).assumed(4))
    np.testing.assert_array_equal(output(report.model), output(model))
    assert report.model is not model
    assert len(report.model.layers) == len(model.layers) + 1
    (entry,) = report
    spec = report.model.get_layer("stem_attention").block.spec
    assert (entry.path, entry.block, entry.channels) == ("stem_attention", name, 4)
    assert entry.macs == spec.macs((1, 4, 8, 7))
    assert entry.parameters == 1 + sum(w.size for w in spec.weights.values() if w.trainable)


def test_identity_is_refused_for_a_block_that_would_never_learn():
    name = next(name for name in SINGLE if name not in CHANGING)
    with pytest.raises(ValueError, match=r"a block that changes its input .* at 'stem_attention', .*use start='defaul"):
        attzoo.attach(network(), name, after="stem", start="identity")


@pytest.mark.parametrize("name", SINGLE)
def test_default_computes_the_block_of_the_output(name):
    model = network()
    attached_model = attzoo.attach(model, name, after="last", **attzoo.info(name).assumed(4)).model
    block = attached_model.get_layer("last_attention").block
    model_before = keras.Model(model.inputs[0], [model.get_layer("last").output, model.get_layer("sum").input[0]])
    last, x = model_before(X)
    expected = model.get_layer("head")(model.get_layer("pool")(x + block(last)))
    np.testing.assert_allclose(output(attached_model), keras.ops.convert_to_numpy(expected), rtol=1e-5, atol=1e-6)


def test_the_residual_branch_is_found():
    report = attzoo.attach(network(), "se", after="residual")
    assert [entry.path for entry in report] == ["last_attention"]


def test_weights_are_copies():
    model = network()
    attached_model = attzoo.attach(model, "eca", after="inner.bn", start="identity").model
    output_before = output(model)
    for weight in attached_model.weights:
        weight.assign(keras.ops.ones(weight.shape))
    np.testing.assert_array_equal(output(model), output_before)


@pytest.mark.parametrize("after", ["stem", "inner.bn"])
def test_saved_reloaded_and_detached(after, tmp_path):
    model = network()
    report = attzoo.attach(model, "cbam", after=after, start="identity")
    report.model.get_layer("stem").trainable = False
    report.model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(output(loaded), output(model))
    removed = attzoo.detach(loaded)
    assert [entry.path for entry in removed] == [entry.path for entry in report] == [f"{after}_attention"]
    np.testing.assert_array_equal(output(removed.model), output(model))
    assert not removed.model.get_layer("stem").trainable
    with pytest.raises(ValueError, match=r"expected a model with blocks of attzoo.attach, got 'net' without any"):
        attzoo.detach(model)


def test_gamma_and_block_learn():
    attached_model = attzoo.attach(network(), "spatial_attention", after="residual", start="identity").model
    attached_model.compile(keras.optimizers.SGD(0.1), "mse")
    before = [keras.ops.convert_to_numpy(w) for w in attached_model.get_layer("last_attention").trainable_weights]
    attached_model.fit(X, np.ones((2, 2)), epochs=2, verbose=0)
    after = [keras.ops.convert_to_numpy(w) for w in attached_model.get_layer("last_attention").trainable_weights]
    assert all((array_before != array_after).any() for array_before, array_after in zip(before, after, strict=True))


def test_attention_maps_see_attached_blocks():
    attached_model = attzoo.attach(network(), "cbam", after="inner.conv", start="identity").model
    with attzoo.attention_maps(attached_model) as maps:
        attached_model(X)
    path = "inner.conv_attention.block"   # does not depend on other models in the process
    assert {name: array.shape for name, array in maps.items()} == {
        f"{path}.channel": (2, 4, 1, 1), f"{path}.spatial": (2, 1, 8, 7)}   # fmt: skip


def test_a_sequential_model_becomes_a_functional_one():
    model = keras.Sequential([keras.Input((8, 7, 3)), keras.layers.Conv2D(4, 1, name="conv")])
    attached_model = attzoo.attach(model, "se", after=keras.layers.Conv2D, start="identity").model
    np.testing.assert_array_equal(output(attached_model), output(model))


def test_channels_first_follows_the_layer():
    inputs = keras.Input((3, 8, 7))
    model = keras.Model(inputs, keras.layers.BatchNormalization(axis=1, name="bn")(inputs))
    report = attzoo.attach(model, "se", after="bn", start="identity")
    assert report.entries[0].channels == 3
    assert report.model.get_layer("bn_attention").block.data_format == "channels_first"


def test_the_policy_follows_the_layer():
    inputs = keras.Input((8, 7, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 1, name="conv", dtype="mixed_bfloat16")(inputs))
    attached_model = attzoo.attach(model, "se", after="conv", start="identity").model
    block = attached_model.get_layer("conv_attention").block
    assert (block.compute_dtype, block.variable_dtype) == ("bfloat16", "float32")
    assert attached_model.output.dtype == model.output.dtype


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
    """Return a functional model that calls layers one after the other."""
    x = input_tensor = keras.Input(inputs)
    for layer in layers:
        x = layer(x)
    return keras.Model(input_tensor, x, **options)


def test_frozen_layers_of_nested_models_stay_frozen():
    model = network()
    model.get_layer("inner").get_layer("conv").trainable = False
    timed = keras.layers.TimeDistributed(keras.layers.Dense(3), name="timed")
    outer = chain(timed, model)
    timed.layer.trainable = False
    attached_model = attzoo.attach(outer, "se", after="net.inner.conv").model
    attached = attached_model.get_layer("net").get_layer("inner").get_layer("conv_attention")
    assert len(attached_model.trainable_weights) == len(outer.trainable_weights) + len(attached.weights)
    outer.trainable = False
    attached_model = attzoo.attach(outer, "se", after="net.inner.conv").model
    attached = attached_model.get_layer("net").get_layer("inner").get_layer("conv_attention")
    assert not attached_model.get_layer("net").get_layer("stem").trainable
    assert len(attached.trainable_weights) == len(attached.weights)


def test_a_layer_in_two_nested_models_is_copied_once():
    shared = keras.layers.Conv2D(3, 1, name="shared")
    first_model, second_model = chain(shared, name="a"), chain(shared, name="b")
    inputs = keras.Input((8, 7, 3))
    model = keras.Model(
        inputs, keras.layers.ReLU(name="out")(keras.layers.Add()([first_model(inputs), second_model(inputs)]))
    )
    report = attzoo.attach(model, "se", after="out", start="identity")
    assert report.model.count_params() == model.count_params() + report.parameters
    np.testing.assert_array_equal(output(report.model), output(model))
    with pytest.raises(ValueError, match=r"expected 'a.shared' to be called once"):
        attzoo.attach(model, "se", after="a.shared")


def adapted(layer):
    """Return a lookup layer adapted to data, whose vocabulary is not in its config."""
    layer.adapt(np.array(["b a", "a c", "a"]))
    return layer


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="models with text inputs need TensorFlow")
@pytest.mark.parametrize("create_layer", [
    lambda: adapted(keras.layers.TextVectorization(output_mode="multi_hot")),
    lambda: adapted(keras.layers.TextVectorization(output_mode="tf_idf")),
    lambda: adapted(keras.layers.StringLookup(output_mode="one_hot")),
    lambda: keras.layers.StringLookup(vocabulary=["a", "b a"], output_mode="one_hot"),
    lambda: keras.Sequential([adapted(keras.layers.TextVectorization(output_mode="multi_hot"))]),
])   # fmt: skip
def test_lookup_layers_keep_their_vocabulary(create_layer):
    inputs = keras.Input((1,), dtype="string")
    x = keras.ops.cast(keras.layers.Reshape((-1, 1))(create_layer()(inputs)), "float32")
    model = keras.Model(inputs, keras.layers.Conv1D(2, 1, name="conv")(x))
    report = attzoo.attach(model, "se", after="conv", start="identity")
    words = keras.ops.convert_to_tensor(np.array([["a"], ["b a"], ["d"]]))
    y = np.asarray(model(words))
    assert y.shape[1] > 1
    assert y.std() > 0
    np.testing.assert_array_equal(np.asarray(report.model(words)), y)


def test_layers_that_compute_with_other_arrays_than_their_weights():
    norm = keras.layers.Normalization()
    norm.adapt(3 * X + 1)
    model = chain(norm, keras.layers.Lambda(lambda x: keras.ops.abs(x)), keras.layers.Conv2D(4, 1, name="conv"))
    attached_model = attzoo.attach(model, "se", after="conv", start="identity").model
    np.testing.assert_array_equal(output(attached_model), output(model))


@pytest.mark.parametrize("start", ["identity", "default"])
def test_keras_masks_are_passed_on(start):
    model = chain(keras.layers.Embedding(10, 4, mask_zero=True, name="words"), keras.layers.LSTM(3), inputs=(5,))
    attached_model = attzoo.attach(model, "se", after="words", start=start).model
    with_block = attached_model.get_layer("words_attention").output
    assert with_block._keras_mask is not None
    if start == "identity":
        words = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]])
        actual, expected = (keras.ops.convert_to_numpy(net(words)) for net in (attached_model, model))
        np.testing.assert_array_equal(actual, expected)


def test_attaching_twice_is_refused():
    attached_model = attzoo.attach(network(), "se", after="inner.conv").model
    with pytest.raises(ValueError, match=r"expected no layer 'inner.conv_attention', got .*: detach it first"):
        attzoo.attach(attached_model, "se", after="inner.conv")


def test_a_residual_branch_from_the_input_of_a_model_to_an_operation():
    inputs = keras.Input((8, 7, 3))
    model = keras.Model(inputs, inputs + 0.5 * keras.layers.Conv2D(3, 1)(inputs))
    report = attzoo.attach(model, "se", after="residual", start="identity")
    (product,) = [operation.name for operation in model.operations if "multiply" in operation.name]
    assert [entry.path for entry in report] == [f"{product}_attention"]
    np.testing.assert_array_equal(output(report.model), output(model))


def test_the_data_format_follows_the_other_layers():
    layers = keras.layers
    model = chain(layers.BatchNormalization(axis=1), layers.ReLU(name="relu"), inputs=(3, 8, 7))
    (entry,) = attzoo.attach(model, "se", after="relu")
    assert entry.channels == 3
    model = chain(layers.BatchNormalization(axis=1), layers.ReLU(name="relu"), layers.BatchNormalization(),
                  inputs=(3, 8, 7))
    with pytest.raises(ValueError, match=r"expected layers of one data format around .*, got .*: give data_for"):
        attzoo.attach(model, "se", after="relu")
    (entry,) = attzoo.attach(model, "se", after="relu", data_format="channels_first")
    assert entry.channels == 3


def test_models_that_override_call_are_refused():
    class Doubled(keras.Sequential):
        def call(self, x, training=None, mask=None):
            return 2 * super().call(x, training=training, mask=mask)

    model = Doubled([keras.Input((8, 7, 3)), keras.layers.Conv2D(4, 1, name="conv")])
    for invalid_model in (model, chain(model)):
        with pytest.raises(ValueError, match="got Doubled, which has its own call: call the block there"):
            attzoo.attach(invalid_model, "se", after=keras.layers.Conv2D)


def test_models_without_a_graph_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="expected a functional Keras model, got Subclassed; a subclassed model calls"):
        attzoo.attach(Subclassed(), "se", after="x")
    with pytest.raises(ValueError, match="expected a built model"):
        attzoo.attach(keras.Sequential([keras.layers.Conv2D(4, 1)]), "se", after="x")
    with pytest.raises(ValueError, match="expected a block with one input after a layer, got attention_gate"):
        attzoo.attach(network(), "attention_gate", after="stem")


def test_swap_exchanges_blocks_of_attzoo():
    inputs = keras.Input((8, 7, 3))
    block = attzoo.create("se", 3, backend="keras", name="block")
    model = keras.Model(inputs, keras.layers.ReLU(name="out")(block(inputs)))
    report = attzoo.swap(model, "eca", where="block", kernel_size=3)
    assert [(entry.path, entry.block) for entry in report] == [("block", "eca")]
    assert type(report.model.get_layer("block")) is attzoo.get("eca", backend="keras")
    assert type(model.get_layer("block")) is attzoo.get("se", backend="keras")
    with pytest.raises(ValueError, match="expected a block of attzoo at 'out', got ReLU: in Keras"):
        attzoo.swap(model, "eca", where="out")
    with pytest.raises(ValueError, match="expected a block with one input after a layer, got attention_gate"):
        attzoo.swap(model, "attention_gate", where="block")


def part_of_keras(name):
    """Return a part of MobileNetV3 or EfficientNet of keras.applications, with random weights."""
    module, x = import_module(f"keras.src.applications.{name}"), keras.Input((8, 7, 24))
    if name == "mobilenet_v3":
        y = module._se_block(x, 24, 0.25, "expanded_conv_3_")
    else:
        y = module.block(x, "swish", filters_in=24, filters_out=24, se_ratio=0.25, name="block1a_")
    model = keras.Model(x, y)
    model.set_weights([RNG.uniform(0.2, 1, w.shape) - 0.5 * (w.ndim > 1) for w in model.get_weights()])
    return model


@pytest.mark.parametrize(("name", "where", "spec"), [
    ("mobilenet_v3", "*_squeeze_excite_mul", {"gate": "hard_sigmoid", "act": "relu", "reduced_channels": 8}),
    ("efficientnet", "*_se_excite", {"gate": "sigmoid", "act": "silu", "reduced_channels": 6}),
])   # fmt: skip
def test_swap_copies_the_weights_of_keras_applications_attention(name, where, spec):
    model, images = part_of_keras(name), RNG.normal(size=(2, 8, 7, 24)).astype("float32")
    report = attzoo.swap(model, "se", where=where)
    (entry,) = report
    assert entry.weights == "Keras"
    assert spec.items() <= report.model.get_layer(entry.path).spec.config().items()
    assert report.model.count_params() == model.count_params()
    np.testing.assert_allclose(np.asarray(report.model(images)), np.asarray(model(images)), rtol=1e-5, atol=1e-5)
    report = attzoo.swap(model, "eca", where=where)
    assert [entry.weights for entry in report] == ["initial"]


@pytest.mark.parametrize(("options", "weights"), [
    ({"reduction": 4}, "Keras"), ({"reduction": 8}, "initial"), ({"variant": "paper"}, "initial"),
    ({"variant": "torchvision-efficientnet", "reduction": 4}, "Keras"),
])   # fmt: skip
def test_options_of_swap_override_the_arguments_of_keras_applications(options, weights):
    (entry,) = attzoo.swap(part_of_keras("efficientnet"), "se", where="*_se_excite", **options)
    assert entry.weights == weights


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_swap_copies_weights_in_mixed_precision(policy):
    policy_before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = part_of_keras("efficientnet")
    finally:
        keras.config.set_dtype_policy(policy_before)
    report = attzoo.swap(model, "se", where="*_se_excite")
    assert [entry.weights for entry in report] == ["Keras"]
    block = report.model.get_layer("block1a_se_excite")
    assert block.dtype_policy.name == policy
    for name, layer in (("squeeze", "block1a_se_reduce"), ("excite", "block1a_se_expand")):
        kernel = np.asarray(model.get_layer(layer).kernel)[0, 0]
        np.testing.assert_array_equal(attzoo.weights(block)[f"{name}.weight"], kernel.T)


@pytest.mark.parametrize("frozen", [True, False])
def test_swap_copies_whether_attention_of_keras_applications_is_frozen(frozen):
    inner = part_of_keras("efficientnet")
    for layer in inner.layers:
        layer.trainable = not (frozen and "_se_" in layer.name)
    inputs = keras.Input((8, 7, 24))
    model = keras.Model(inputs, inner(inputs))

    def trainable(**options):
        report = attzoo.swap(model, "se", where="*_se_excite", **options)
        assert [entry.weights for entry in report] == ["Keras"]
        block = report.model.get_layer(inner.name).get_layer("block1a_se_excite")
        return report.parameters, sum(int(np.prod(w.shape)) for w in block.trainable_weights)

    count = 2 * 24 * 6 + 6 + 24
    assert trainable() == ((0, 0) if frozen else (count, count))
    assert trainable(trainable=True) == (count, count)
    assert trainable(trainable=False) == (0, 0)


@pytest.mark.parametrize(("act", "layers_before"), [
    ("gelu", []), ("relu6", []), ("relu", [keras.layers.Dropout(0.5)]), ("relu", [keras.layers.GaussianNoise(0.5)]),
])   # fmt: skip
def test_attention_of_another_function_gets_initial_weights(act, layers_before):
    inputs = keras.Input((8, 7, 4))
    h = keras.ops.mean(inputs, (1, 2), keepdims=True)
    for layer in layers_before:   # which changes its input only in training
        h = layer(h)
    h = keras.layers.Conv2D(2, 1, activation=act, name="se_reduce")(h)
    a = keras.layers.Conv2D(4, 1, activation="sigmoid", name="se_expand")(h)
    model = keras.Model(inputs, keras.layers.Multiply(name="product")([inputs, a]))
    assert [entry.weights for entry in attzoo.swap(model, "se", where="product")] == ["initial"]
    squared = keras.Model(inputs, keras.layers.Multiply(name="product")([inputs, inputs]))
    with pytest.raises(ValueError, match="expected a block of attzoo at 'product', got Multiply"):
        attzoo.swap(squared, "se", where="product")


def mobilenet():
    """Return a small MobileNetV3 of keras.applications for images of 32 x 32."""
    keras.utils.set_random_seed(0)
    options = {"alpha": 0.35, "classes": 3, "include_preprocessing": False, "weights": None}
    return keras.applications.MobileNetV3Small((32, 32, 3), **options)


def test_blocks_in_mobilenet_are_trained_saved_and_mapped(tmp_path):
    model, images = mobilenet(), RNG.normal(size=(2, 32, 32, 3)).astype("float32")
    report = attzoo.attach(model, "cbam", after="residual", start="identity")
    net = report.model
    np.testing.assert_array_equal(np.asarray(net(images)), np.asarray(model(images)))
    net.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=True)   # compilation takes longer
    net.fit(images, np.zeros((2, 3)), verbose=0)
    assert all(np.asarray(net.get_layer(entry.path).gamma).item() != 0 for entry in report)
    net.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    with attzoo.attention_maps(loaded) as maps:
        np.testing.assert_array_equal(np.asarray(loaded(images)), np.asarray(net(images)))
    assert len(maps) == 2 * len(report)


def trained():
    """Return a model with an attached CBAM whose gamma is 0.5."""
    net = attzoo.attach(network(), "cbam", after="inner.bn", start="identity").model
    net.get_layer("inner").get_layer("bn_attention").gamma.assign([0.5])
    return net


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a format of TensorFlow")
def test_saved_model_and_litert_model_of_an_attached_block_equal_the_model(tmp_path):
    import tensorflow as tf

    net = trained()
    net.export(tmp_path / "net", verbose=False)
    exported = tf.saved_model.load(tmp_path / "net")
    for x in (X, X[:1]):
        got = np.asarray(exported.serve(x))
        np.testing.assert_allclose(got, np.asarray(net(x)), rtol=1e-4, atol=1e-6)
    inputs = keras.Input(X.shape[1:], 1)
    fixed = keras.Model(inputs, net(inputs))
    np.testing.assert_allclose(litert_output(fixed, [X[:1]], tmp_path), np.asarray(net(X[:1])), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")   # of other layers
def test_quantized_attached_block_can_be_saved_and_loaded(tmp_path):
    net = trained()
    before = output(net)
    net.quantize("int8")
    after = output(net)
    assert 0 < abs(after - before).max() < 0.5 * np.ptp(before)
    block = net.get_layer("inner").get_layer("bn_attention").block
    assert block.channel.squeeze.quantization_mode == "int8"
    net.save(tmp_path / "net.keras")
    np.testing.assert_array_equal(output(keras.models.load_model(tmp_path / "net.keras")), after)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Keras needs tf2onnx except on torch")
@pytest.mark.filterwarnings("ignore")   # of the tracer and of deprecated functions, inside torch.onnx
def test_attached_model_exported_to_onnx_equals_the_model(tmp_path):
    """tests/test_keras_backends.py runs this on torch."""
    onnxruntime = pytest.importorskip("onnxruntime")
    net = attzoo.attach(network(), "cbam", after="inner.bn").model
    expected = output(net)   # Keras exports only models that have been called
    net.export(tmp_path / "net.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: X})
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def keras_se(x, layers, name, mean=lambda x: keras.ops.mean(x, (1, 2), keepdims=True)):
    """Return the output of an SE of two layers with the names of keras.applications."""
    squeeze, excite = layers
    return keras.layers.Multiply(name=name)([x, excite(squeeze(mean(x)))])


def se_layers(prefix="", channels=4, reduced_channels=2, **options):
    """Return the two layers of an SE; the other options are those of the first."""
    squeeze = keras.layers.Conv2D(reduced_channels, 1, **{"activation": "relu", **options}, name=f"{prefix}se_reduce")
    return squeeze, keras.layers.Conv2D(channels, 1, activation="sigmoid", name=f"{prefix}se_expand")


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_rounding_errors_of_many_channels_do_not_hide_an_equal_function(activation):
    """The size of an SE of EfficientNetB0, with means that have errors of about 1e-6, as large sums do."""
    inputs, layers = keras.Input((4, 4, 672)), se_layers("", 672, 28, activation=activation)
    errors = 1 + 3e-6 * np.random.default_rng(0).uniform(-1, 1, 672).astype("float32")
    mean = keras.layers.Lambda(lambda x: keras.ops.mean(x, (1, 2), keepdims=True) * errors)
    model = keras.Model(inputs, keras_se(inputs, layers, "se_excite", mean))
    assert [entry.weights for entry in attzoo.swap(model, "se", where="se_excite")] == ["Keras"]


@pytest.mark.parametrize("setting", ["kernel_regularizer", "bias_regularizer", "activity_regularizer",
                                     "kernel_constraint", "bias_constraint"])   # fmt: skip
def test_settings_that_a_block_would_lose_raise(setting):
    inputs = keras.Input((8, 7, 4))
    layers = se_layers(**{setting: keras.regularizers.L2(0.1) if "regu" in setting else keras.constraints.NonNeg()})
    model = keras.Model(inputs, keras_se(inputs, layers, "se_excite"))
    with pytest.raises(ValueError, match=f"got 'se_reduce' with {setting}: set {setting} of the layer to None first"):
        attzoo.swap(model, "se", where="se_excite")
    setattr(layers[0], setting, None)
    assert [entry.weights for entry in attzoo.swap(model, "se", where="se_excite")] == ["Keras"]


def test_attention_of_which_one_layer_is_frozen_raises():
    inputs, layers = keras.Input((8, 7, 4)), se_layers()
    model = keras.Model(inputs, keras_se(inputs, layers, "se_excite"))
    layers[0].trainable = False
    with pytest.raises(ValueError, match=r"'se_reduce' with trainable=False and 'se_expand' with .*: give trainable="):
        attzoo.swap(model, "se", where="se_excite")
    report = attzoo.swap(model, "se", where="se_excite", trainable=False)
    assert ([entry.weights for entry in report], report.parameters) == (["Keras"], 0)


def test_layers_that_several_positions_share_raise():
    x = inputs = keras.Input((8, 7, 4))
    layers = se_layers()
    for name in ("a_se_excite", "b_se_excite"):
        x = keras_se(x, layers, name)
    model = keras.Model(inputs, x)
    for where, used in (("*_se_excite", "in 'a_se_excite' and 'b_se_excite'"), ("a_se_excite", "elsewhere too")):
        with pytest.raises(ValueError, match=f"used by one attention only, got 'se_reduce', used {used}: call one blo"):
            attzoo.swap(model, "se", where=where)
    assert len(attzoo.swap(model, "eca", where="*_se_excite")) == 2   # initial weights: nothing is shared


def test_attention_with_a_lambda_layer_gets_its_weights():
    inputs = keras.Input((8, 7, 4))
    mean = keras.layers.Lambda(lambda x: keras.ops.mean(x, (1, 2), keepdims=True))
    model = keras.Model(inputs, keras_se(inputs, se_layers(), "se_excite", mean))
    report = attzoo.swap(model, "se", where="se_excite")
    assert [entry.weights for entry in report] == ["Keras"]
    images = RNG.normal(size=(2, 8, 7, 4)).astype("float32")
    np.testing.assert_allclose(np.asarray(report.model(images)), np.asarray(model(images)), rtol=1e-5, atol=1e-6)


def test_a_block_with_an_array_named_gamma_is_not_attached_with_identity(monkeypatch):
    spec = attzoo.create("eca", 4, backend="numpy")
    monkeypatch.setattr(type(spec), "weights", {**spec.weights, "gamma": spec.weights["conv.weight"]})
    with pytest.raises(ValueError, match=r"expected no array gamma .* got one of ECA at 'stem_attention"):
        attzoo.attach(network(), "eca", after="stem", start="identity")


def test_attention_of_one_layer_gets_initial_weights():
    inputs = keras.Input((8, 7, 4))
    means = keras.ops.mean(inputs, (1, 2), keepdims=True)
    a = keras.layers.Conv2D(4, 1, activation="sigmoid", name="se_reduce")(means)   # named as a layer of an SE
    model = keras.Model(inputs, keras.layers.Multiply(name="product")([inputs, a]))
    assert [entry.weights for entry in attzoo.swap(model, "se", where="product")] == ["initial"]


def test_swap_of_a_product_that_is_called_twice_raises():
    x = inputs = keras.Input((8, 7, 4))
    product = keras.layers.Multiply(name="product")
    for _ in range(2):   # with different coefficients
        x = product([x, keras.layers.Conv2D(4, 1, activation="sigmoid")(keras.ops.mean(x, (1, 2), keepdims=True))])
    with pytest.raises(ValueError, match="expected 'product' to be called once, got a layer that the model calls sev"):
        attzoo.swap(keras.Model(inputs, x), "se", where="product")


def test_a_block_that_is_called_twice_is_exchanged_once():
    block = attzoo.create("se", 3, backend="keras", name="block")
    report = attzoo.swap(chain(block, block), "eca", where="block", kernel_size=3)
    assert len(report) == 1
    assert report.model.count_params() == 3


# ---- what a copy would lose, and options ---------------------------------------------------------------------------


class Trained(keras.Model):
    def __init__(self, inputs, outputs, temperature=2.0, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.temperature = temperature

    def train_step(self, *args):
        raise NotImplementedError


class TrainedSequence(keras.Sequential):
    def train_step(self, *args):
        raise NotImplementedError


def test_models_whose_copy_would_lose_methods_raise():
    model = network()
    for own in (Trained(model.inputs, model.outputs), TrainedSequence([keras.Input((8, 7, 3)), *model.layers[1:2]])):
        with pytest.raises(ValueError, match=r"overrides no methods .*, got Trained.*: attach to keras\.Model\("):
            attzoo.attach(own, "se", after="stem")


def test_layers_whose_copy_would_compute_another_function_raise():
    model = network()
    layer = model.get_layer("last")
    call = layer.call
    layer.call = lambda x: 2 * call(x)
    with pytest.raises(ValueError, match=r"expected 'last' with the methods of its class, .* whose call was replaced"):
        attzoo.attach(model, "se", after="stem")


def test_layers_that_keras_cannot_copy_are_named():
    class Scale(keras.layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, x):
            return x * self.factor

    inputs = keras.Input((8, 7, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 1, name="conv")(Scale(2)(inputs)))
    with pytest.raises(ValueError, match=r"expected layers that Keras can copy, got 'scale.*': its get_config must"):
        attzoo.attach(model, "se", after="conv")
    block = attzoo.create("se", 4, backend="keras", name="block")
    model = keras.Model(inputs, block(keras.layers.Conv2D(4, 1, name="conv")(inputs)))
    block.squeeze.enable_lora(2)
    with pytest.raises(ValueError, match="expected layers that get_config describes, got 'block' with 6 weights"):
        attzoo.attach(model, "eca", after="conv")
    model = network()
    model.compile(loss=lambda y, z: y)
    message = "expected a loss and metrics that Keras can copy, got others that it cannot copy in 'net'"
    with pytest.warns(UserWarning, match="includes a `lambda`"), pytest.raises(ValueError, match=message):
        attzoo.attach(model, "se", after="stem")


@pytest.mark.parametrize("kind", ["GroupNormalization", "LayerNormalization", "RMSNormalization"])
def test_norms_state_the_data_format(kind):
    options = {"groups": 2} if kind == "GroupNormalization" else {}
    inputs = keras.Input((4, 8, 7))
    model = keras.Model(inputs, getattr(keras.layers, kind)(axis=1, name="norm", **options)(inputs))
    assert attzoo.attach(model, "se", after="norm").entries[0].channels == 4


@pytest.mark.parametrize("start", ["default", "identity"])
def test_dtype_policy_of_an_attached_block_applies_to_its_layer(start):
    attached_model = attzoo.attach(network(), "se", after="stem", start=start, dtype="float16").model
    assert attached_model.get_layer("stem_attention").compute_dtype == "float16"
    assert np.all(np.isfinite(output(attached_model)))


@pytest.mark.parametrize("trainable", [True, False])
def test_attached_blocks_are_trainable_by_default(trainable):
    model = network()
    model.get_layer("inner").trainable = False
    report = attzoo.attach(model, "eca", after="inner.conv", trainable=trainable)
    added = len(report.model.trainable_weights) - len(model.trainable_weights)
    assert (added, report.parameters) == ((1, 1) if trainable else (0, 0))


def test_swapped_blocks_are_trainable_by_default():
    inputs = keras.Input((8, 7, 3))
    block = attzoo.create("se", 3, backend="keras", name="block")
    model = keras.Model(inputs, block(inputs))
    for trainable in (True, False):
        report = attzoo.swap(model, "eca", where="block", kernel_size=3, trainable=trainable)
        assert (len(report.model.trainable_weights), report.parameters) == ((1, 3) if trainable else (0, 0))


def test_invalid_arguments_of_attach_raise():
    with pytest.raises(TypeError, match="se at 'stem' takes channels from the network: leave channels= out"):
        attzoo.attach(network(), "se", after="stem", channels=4)
    with pytest.raises(ValueError, match="expected a block at 'stem', got the network 'unet': give one of se"):
        attzoo.attach(network(), "unet", after="stem")
    with pytest.raises(TypeError, match=r"after must be a function of path and module, got <lambda>\(layer\)"):
        attzoo.attach(network(), "se", after=lambda layer: True)
