"""Features of Keras with blocks, on any backend: models, files, dtype policies, exporters.

KERAS_BACKEND selects the backend. Tests of features that only TensorFlow has are skipped on the others.
"""

import json
import os
import pickle
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from litert import litert_output
from samples import (
    LAST_OF_EACH,
    NET,
    SAMPLES,
    assert_initialized_as,
    in_thirds,
    network,
    pooled_initial_arrays,
    pooling_blocks,
    seed_of,
    zeros_of,
)

import attzoo
from attzoo.adapters import adapter
from attzoo.blocks.keras import Block
from attzoo.contract import by_name
from attzoo.ops.keras import find, keras

BACKEND = keras.backend.backend()
FIRST, LAST = LAYOUTS = ("channels_first", "channels_last")
NORMED = [name for name, sample in SAMPLES.items() if sample.has_statistics]
SINGLE = [name for name, sample in SAMPLES.items() if sample.has_single_values]
# one sample per block on JAX, which compiles every operation for every size outside of `fit`
CHOSEN = LAST_OF_EACH if BACKEND == "jax" else list(SAMPLES)
every_sample = pytest.mark.parametrize("sample", [SAMPLES[name] for name in CHOSEN], ids=CHOSEN)
WEIGHTED = [name for name in CHOSEN if SAMPLES[name].has_weights]
every_sample_with_weights = pytest.mark.parametrize("sample", [SAMPLES[name] for name in WEIGHTED], ids=WEIGHTED)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason=f"needs TensorFlow, got {BACKEND}")


@pytest.fixture(autouse=True)
def _settings():
    """Set the same seed before every test and reset the dtype policy after it."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def to_layout(x, layout):
    """Return a channels-first array or shape in a layout."""
    if layout == FIRST:
        return x
    return np.moveaxis(x, 1, -1) if isinstance(x, np.ndarray) else (x[0], *x[2:], x[1])


def inputs(sample, layout=LAST, dtype="float32", **kwargs):
    """Return the inputs of a sample in a layout."""
    return [to_layout(x, layout).astype(dtype) for x in sample.arrays(**kwargs)]


def randomize(block):
    """Set random running statistics, and random weights in place of zeros, so that nothing is an identity.

    Return the block.
    """
    rng = np.random.default_rng(1)
    arrays = attzoo.weights(block)
    for name in zeros_of(block.spec):
        arrays[name][:] = keras.ops.convert_to_numpy(keras.random.normal(arrays[name].shape))
    for name, array in arrays.items():
        if name.endswith((".mean", ".var")):
            array[:] = rng.uniform(0.5, 2, array.shape)
    adapter("keras").write(block, arrays)   # rounds to the dtype of the block
    return block


def build(sample, layout=LAST, **kwargs):
    """Return a block with random running statistics and no weights of zeros."""
    return randomize(sample.create("keras", data_format=layout, **kwargs))


def functional_model(sample, layout=LAST, fixed_sizes=False, **kwargs):
    """Return a model of one block, and the block. The spatial sizes are None unless `fixed_sizes`."""
    shapes = [to_layout(s if fixed_sizes else (s[0], s[1], *(None,) * (len(s) - 2)), layout)[1:] for s in sample.shapes]
    tensors = [keras.Input(shape) for shape in shapes]
    block = build(sample, layout, **kwargs)
    return keras.Model(tensors, block(*tensors)), block


def all_blocks_model(layout=LAST, fixed_sizes=False, third=None):
    """Return a model with all blocks, or a third of them, in a row."""
    spaces = [shape[2:] if fixed_sizes else (None, None) for shape in NET.shapes]
    x, g = tensors = [keras.Input(to_layout((None, c, *s), layout)[1:]) for c, s in zip((8, 6), spaces, strict=True)]
    row = []
    for name, sample in network(third).items():
        keras.utils.set_random_seed(seed_of(name))
        row.append(sample.create("keras", data_format=layout))
        x = row[-1](x, *[g] * (len(sample.shapes) - 1))
    keras.utils.set_random_seed(0)
    for block in row:
        randomize(block)
    return keras.Model(tensors, x)


def blocks(model):
    """Return the layers of a model that are blocks."""
    return [layer for layer in model.layers if isinstance(layer, Block)]


MODELS = {f"net-{third}": (NET, partial(all_blocks_model, third=third)) for third in range(3)} | {
    name: (SAMPLES[name], lambda sample=SAMPLES[name], **kwargs: functional_model(sample, **kwargs)[0])
    for name, sample in SAMPLES.items()
    if len(sample.shapes) > 1 and len(sample.shapes[0]) != 4   # gates with one and three spatial axes
}
models = pytest.mark.parametrize(("sample", "make"), MODELS.values(), ids=MODELS)


def array(tensor):
    """Return a tensor as a float64 array."""
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64")))


def relative_error(actual, expected):
    """Return the largest absolute difference, divided by the largest absolute expected value."""
    actual, expected = array(actual), array(expected)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    return abs(actual - expected).max() / abs(expected).max()


def expected_output(block, sample, **kwargs):
    """Return the output of the spec for the inputs of the sample, in float64 and the layout of the block."""
    weights = {name: w.astype(np.float64) for name, w in attzoo.weights(block).items()}
    return to_layout(block.spec(*sample.arrays(**kwargs), weights=weights), block.data_format)


# ---- models --------------------------------------------------------------------------------------------


@layouts
@every_sample
def test_functional_model_with_dynamic_sizes_agrees_with_the_spec(sample, layout):
    model, block = functional_model(sample, layout)
    _, c, *sizes = sample.shapes[0]
    assert model.output.shape == to_layout((None, c, *(None for _ in sizes)), layout)
    for increase in (0, 1, 2):
        y = model(inputs(sample, layout, increase=increase))
        assert relative_error(y, expected_output(block, sample, increase=increase)) < 1e-5


@layouts
@every_sample
def test_output_shape_and_dtype_are_known_before_the_call(sample, layout):
    block = sample.create("keras", data_format=layout, dtype="mixed_float16")
    shapes = [to_layout(shape, layout) for shape in sample.shapes]
    assert tuple(block.compute_output_shape(*shapes)) == shapes[0]
    output = block(*(keras.KerasTensor((None, *shape[1:])) for shape in shapes))
    assert output.shape == (None, *shapes[0][1:])
    assert output.dtype == "float16"
    with pytest.raises(ValueError, match="expected"):
        block.compute_output_shape(*(to_layout((n, c + 1, *sizes), layout) for n, c, *sizes in sample.shapes))


@pytest.mark.parametrize("name", [name for name in CHOSEN if len(SAMPLES[name].shapes) == 1])
def test_time_distributed_equals_single_calls(name):
    block = build(SAMPLES[name])
    (x,) = inputs(SAMPLES[name])
    y = keras.layers.TimeDistributed(block)(np.stack([x, 2 * x], axis=1))
    for i in range(2):
        assert relative_error(y[:, i], block((i + 1) * x)) < 1e-6


class Subclassed(keras.Model):
    """A subclassed model with two branches, joined by a gate."""

    def __init__(self):
        super().__init__()
        self.down = keras.layers.Conv2D(6, 3, strides=2, padding="same")
        self.stem = keras.layers.Conv2D(8, 3, padding="same")
        self.cbam = attzoo.create("cbam", 8, backend="keras", reduction=2, kernel_size=3, norm=True)
        self.gate = attzoo.create("attention_gate", 8, 6, backend="keras", norm=True)
        self.head = keras.layers.Conv2D(1, 1)

    def call(self, x, training=None):
        skip = self.cbam(self.stem(x), training=training)
        return self.head(self.gate(skip, self.down(x), training=training))


def assert_learns(model, xs, y):
    """Assert that three steps of SGD decrease the loss."""
    model.compile(keras.optimizers.SGD(0.05), "mse")
    loss = model.fit(xs, y, batch_size=len(y), epochs=3, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    assert loss[2] < loss[0]


def assert_predicts(model, xs, y):
    """Assert that `predict` and `evaluate` agree with a call of the model."""
    predicted = model.predict(xs, batch_size=3, verbose=0)
    assert relative_error(predicted, model(xs, training=False)) < 1e-5
    assert model.evaluate(xs, y, verbose=0) == pytest.approx(np.square(predicted - y).mean(), rel=1e-4)


def test_subclassed_model_learns_and_predicts():
    rng = np.random.default_rng(0)
    model, x = Subclassed(), rng.normal(size=(4, 7, 6, 3)).astype("float32")
    y = model(x)
    assert y.shape == (4, 7, 6, 1)
    assert len(model.cbam.weights) == len(model.cbam.spec.weights)
    target = rng.normal(size=y.shape).astype("float32")
    assert_learns(model, x, target)
    assert_predicts(model, x, target)


@pytest.mark.parametrize("input_shapes", [[], [(None, None, 8)]], ids=["deferred", "given"])
@in_thirds
def test_sequential_model_learns(input_shapes, third):
    row = [sample.create("keras") for sample in network(third).values() if len(sample.shapes) == 1]
    model = keras.Sequential([*map(keras.Input, input_shapes), *row, keras.layers.GlobalAveragePooling2D()])
    x, y = inputs(NET, increase=2)[0], np.ones((4, 8), "float32")
    assert_learns(model, x, y)
    assert [len(block.weights) for block in row] == [len(block.spec.weights) for block in row]


@every_sample_with_weights
@pytest.mark.one_of_each(share=3)
def test_channels_first_model_learns(sample):
    """Also on TensorFlow on a CPU, which has no channels-first convolution."""
    keras.utils.set_random_seed(3)   # with some other seeds, all hidden units are 0 and get no gradient
    model, block = functional_model(sample, FIRST)
    xs = inputs(sample, FIRST, increase=2)
    weights_before = attzoo.weights(block)
    assert_learns(model, xs, np.random.default_rng(1).normal(size=xs[0].shape).astype("float32"))
    for name, after in attzoo.weights(block).items():
        before_norm = name.endswith(".bias") and name.replace(".bias", "_norm.bias") in weights_before   # has no effect
        is_scale = name == "norm1.weight" and "norm2.weight" in weights_before   # GE: norm2 divides each channel by it
        assert before_norm or is_scale or (after != weights_before[name]).any(), name


@tensorflow_only
@in_thirds
def test_training_with_xla_equals_eager_training(third):
    model, eager = all_blocks_model(FIRST, third=third), all_blocks_model(FIRST, third=third)
    eager.set_weights(model.get_weights())
    xs = inputs(NET, FIRST)
    y = np.random.default_rng(1).normal(size=xs[0].shape).astype("float32")
    for trained, options in ((model, {"jit_compile": True}), (eager, {"run_eagerly": True})):
        trained.compile(keras.optimizers.SGD(0.05), "mse", **options)
        trained.fit(xs, y, batch_size=2, epochs=2, verbose=0)
    for actual, expected in zip(model.weights, eager.weights, strict=True):
        np.testing.assert_allclose(array(actual), array(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.case11
@every_sample
def test_empty_batch_gives_an_empty_output(sample):
    model, _ = functional_model(sample)
    xs = [x[:0] for x in inputs(sample)]
    assert model(xs).shape == xs[0].shape
    assert model.predict_on_batch(xs).shape == xs[0].shape


# ---- training and freezing -------------------------------------------------------------------------------


@pytest.mark.case60
@pytest.mark.parametrize("name", NORMED)
def test_running_statistics_are_updated_only_in_training(name):
    block, xs = build(SAMPLES[name]), inputs(SAMPLES[name])
    weights_before = attzoo.weights(block)
    inference_output = block(*xs, training=False)
    assert relative_error(block(*xs), inference_output) == 0
    assert all((after == weights_before[k]).all() for k, after in attzoo.weights(block).items())
    assert relative_error(block(*xs, training=True), inference_output) > 1e-3
    for k, after in attzoo.weights(block).items():
        assert (after == weights_before[k]).all() != k.endswith((".mean", ".var")), k


@every_sample
def test_frozen_block_does_not_change(sample):
    """With trainable=False, norms use running statistics also in training, as in Keras."""
    block, xs = build(sample), inputs(sample)
    weights_before = attzoo.weights(block)
    inference_output = block(*xs, training=False)
    block.trainable = False
    assert not block.trainable_weights
    assert relative_error(block(*xs, training=True), inference_output) < 1e-6   # some CPUs have other kernels
    assert all((after == weights_before[k]).all() for k, after in attzoo.weights(block).items())


@pytest.mark.case61
@layouts
@pytest.mark.parametrize("name", SINGLE)
def test_batch_norm_of_one_value_per_channel_raises_in_training(name, layout):
    sample = SAMPLES[name]
    block, xs = build(sample, layout), [to_layout(x, layout) for x in sample.single_values(np.float32)]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(*xs, training=True)
    assert np.isfinite(array(block(*xs))).all()


@tensorflow_only
@pytest.mark.case61
def test_one_value_per_channel_in_a_graph_keeps_running_statistics_finite():
    """A graph cannot raise an error for sizes that are not known before."""
    model, block = functional_model(SAMPLES["spatial_attention-1d"])
    model.compile("sgd", "mse")
    x = np.ones((1, 1, 3), "float32")
    model.fit(x, x, verbose=0)
    assert all(np.isfinite(w).all() for w in attzoo.weights(block).values())


# ---- initialization and variables --------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [SAMPLES[name] for name in LAST_OF_EACH], ids=LAST_OF_EACH)
@pytest.mark.one_of_each(share=3)
def test_initial_weights_have_the_distributions_of_the_spec(sample):
    keras.utils.set_random_seed(0)
    arrays = pooled_initial_arrays(sample, attzoo.weights, "keras")
    for name, weight in sample.create("numpy").weights.items():
        assert_initialized_as(arrays[name], weight)


@every_sample_with_weights
def test_initial_weights_depend_only_on_the_seed(sample):
    initial = []
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        initial.append(attzoo.weights(sample.create("keras")))
    same_seed, other_seed = ([(initial[0][k] == arrays[k]).all() for k in initial[0]] for arrays in initial[1:])
    assert all(same_seed)
    has_constants_only = all(w.initialization == "constant" for w in sample.create("numpy").weights.values())
    assert all(other_seed) is has_constants_only


@every_sample
def test_variables_are_tracked_and_named(sample):
    model, block = functional_model(sample, name="mine")
    spec = block.spec.weights
    assert len(model.weights) == len(spec)
    assert len(model.trainable_weights) == sum(weight.trainable for weight in spec.values())
    assert model.count_params() == sum(weight.size for weight in spec.values())
    for name in spec:
        *path, attribute = name.split(".")
        variable = find(block, name)
        assert variable.path == "/".join(["mine", *path, variable.name])
        assert variable.name == attribute or (variable.name, attribute) == ("kernel", "weight")


def test_summary_lists_all_blocks():
    lines = []
    model = all_blocks_model()
    model.summary(line_length=150, print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    for block in blocks(model):
        assert block.name in text
        assert f"({type(block).__name__})" in text
    assert f"Total params: {model.count_params():,}" in text


# ---- files and configs -----------------------------------------------------------------------------------


@layouts
@every_sample
def test_block_can_be_created_from_its_config(sample, layout):
    block = sample.create("keras", data_format=layout, dtype="mixed_bfloat16", name="mine", trainable=False)
    config = json.loads(json.dumps(block.get_config()))
    for copied in (
        type(block).from_config(config),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(block)),
    ):
        assert copied.get_config() == config
        assert (copied.spec, copied.name, copied.data_format, copied.trainable) == (block.spec, "mine", layout, False)
        assert (copied.compute_dtype, copied.variable_dtype) == ("bfloat16", "float32")


@every_sample
def test_cloned_model_equals_the_model(sample):
    model, block = functional_model(sample)
    cloned = keras.models.clone_model(model)
    assert cloned.layers[-1].spec == block.spec
    cloned.set_weights(model.get_weights())
    assert relative_error(cloned(inputs(sample)), model(inputs(sample))) == 0


@pytest.mark.case81
@layouts
@every_sample
@pytest.mark.one_of_each(share=3)
def test_loaded_model_equals_the_saved_model(sample, layout, tmp_path):
    model, block = functional_model(sample, layout)
    xs = inputs(sample, layout)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.layers[-1].spec, loaded.layers[-1].data_format) == (block.spec, layout)
    assert relative_error(loaded(xs), model(xs)) == 0
    assert all((w == attzoo.weights(loaded.layers[-1])[k]).all() for k, w in attzoo.weights(block).items())


@pytest.mark.case81
@every_sample_with_weights
def test_loaded_weights_equal_the_saved_weights(sample, tmp_path):
    model, _ = functional_model(sample)
    keras.utils.set_random_seed(5)
    copied, _ = functional_model(sample)
    xs = inputs(sample)
    assert relative_error(copied(xs), model(xs)) > 0
    model.save_weights(tmp_path / "model.weights.h5")
    copied.load_weights(tmp_path / "model.weights.h5")
    assert relative_error(copied(xs), model(xs)) == 0


RELOAD = """
import sys
from contextlib import suppress
with suppress(ImportError):
    import triton   # before TensorFlow, as in attzoo
import keras
import numpy as np
model, inputs, out, attached = sys.argv[1:]
try:
    keras.saving.load_model(model)
except TypeError as err:
    print(str(err).partition("Exception encountered: ")[2])
assert "attzoo" not in sys.modules
import attzoo.keras
with np.load(inputs) as xs:
    np.save(out, keras.ops.convert_to_numpy(keras.saving.load_model(model)([xs["x"], xs["g"]])))
assert keras.saving.load_model(attached).count_params() == 26
"""


def attached_model():
    """Return a model of one convolution with an SE that was attached; they have 10 and 16 parameters."""
    inputs = keras.Input((None, None, 1))
    return attzoo.attach(keras.Model(inputs, keras.layers.Conv2D(5, 1, name="stem")(inputs)), "se", after="stem").model


@pytest.mark.case81
@pytest.mark.case82
@in_thirds
def test_model_can_be_loaded_in_a_fresh_process(third, tmp_path):
    """Loading raises an error with the name of the class until attzoo.keras is imported."""
    model, (x, g) = all_blocks_model(third=third), inputs(NET)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "inputs.npz", x=x, g=g)
    attached_model().save(tmp_path / "attached.keras")
    files = [tmp_path / name for name in ("model.keras", "inputs.npz", "y.npy", "attached.keras")]
    env = os.environ | {"KERAS_BACKEND": BACKEND}
    run = subprocess.run([sys.executable, "-c", RELOAD, *files], capture_output=True, text=True, timeout=200, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"Could not locate class '{type(blocks(model)[0]).__name__}'")
    assert relative_error(np.load(tmp_path / "y.npy"), model([x, g])) < 1e-6   # the order of sums may differ


def test_pickled_model_equals_the_model():
    model = all_blocks_model()
    loaded = pickle.loads(pickle.dumps(model))
    assert relative_error(loaded(inputs(NET)), model(inputs(NET))) == 0


# ---- precision -----------------------------------------------------------------------------------------

POLICIES = {   # policy -> compute dtype, variable dtype, tolerance
    "mixed_float16": ("float16", "float32", 4e-3),
    "mixed_bfloat16": ("bfloat16", "float32", 3e-2),
    "float16": ("float16", "float16", 4e-3),
    "bfloat16": ("bfloat16", "bfloat16", 3e-2),
    "float64": ("float64", "float64", 1e-12),
}


@pytest.mark.one_of_each
@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"] if BACKEND == "jax" else POLICIES)
@every_sample
def test_output_under_a_dtype_policy_agrees_with_the_spec(sample, policy):
    compute, variable, bound = POLICIES[policy]
    if policy == "float64" and adapter("keras").precision(policy) != policy:
        bound = 1e-5   # Keras on torch multiplies matrices in float32
    block = build(sample, dtype=policy)
    y = block(*inputs(sample, dtype="float64"))
    assert keras.backend.standardize_dtype(y.dtype) == compute
    assert all(keras.backend.standardize_dtype(w.dtype) == variable for w in block.weights)
    assert relative_error(y, expected_output(block, sample)) < bound
    cotangent = np.ones(sample.shapes[0])
    run = adapter("keras").run(block, sample.arrays(), cotangent, training=True)
    assert all(np.isfinite(g).all() for g in [*run.input_gradients, *run.weight_gradients.values()])
    assert any(g.any() for g in run.weight_gradients.values()) is sample.has_weights


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@every_sample
def test_attention_accepts_arrays_and_tensors(sample, policy):
    block = build(sample, dtype=policy)
    weights = {name: w.astype(np.float64) for name, w in attzoo.weights(block).items()}
    expected = by_name(block.spec.attention(*sample.arrays(), weights=weights))
    for xs in (inputs(sample, dtype="float64"), list(map(keras.ops.convert_to_tensor, inputs(sample)))):
        got = by_name(block.attention(*xs))
        assert got.keys() == expected.keys()
        for name, a in got.items():
            assert keras.backend.standardize_dtype(a.dtype) == block.compute_dtype
            assert relative_error(a, to_layout(expected[name], LAST)) < (1e-5 if policy == "float32" else 4e-3)


def test_global_policy_applies_to_blocks():
    keras.config.set_dtype_policy("mixed_float16")
    model, _ = functional_model(SAMPLES["cbam"])
    xs = inputs(SAMPLES["cbam"])
    assert keras.backend.standardize_dtype(model(xs).dtype) == "float16"
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {"float32"}
    assert_learns(model, xs, np.ones_like(xs[0]))


@pytest.mark.case34
@every_sample
def test_float64_array_is_cast_to_the_dtype_of_the_block(sample):
    y = build(sample)(*inputs(sample, dtype="float64"))
    assert keras.backend.standardize_dtype(y.dtype) == "float32"


# ---- graphs and exporters ------------------------------------------------------------------------------


@tensorflow_only
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", pooling_blocks())
def test_graph_contains_a_mean(name, dtype):
    """A sum over space would overflow if the graph were converted to float16."""
    import tensorflow as tf

    block = attzoo.info(name).create(4, backend="keras", dtype=dtype)
    signature = tf.TensorSpec((None, None, None, 4), dtype)
    operations = tf.function(block).get_concrete_function(signature).graph.get_operations()
    types = {operation.type for operation in operations}
    assert "Mean" in types
    assert "Sum" not in types


@tensorflow_only
@every_sample
@pytest.mark.one_of_each(share=3)
def test_tf_function_with_dynamic_sizes_equals_eager(sample):
    import tensorflow as tf

    block, eager = build(sample), build(sample)
    attzoo.load_weights(eager, attzoo.weights(block))
    signature = [tf.TensorSpec((None,) * (len(shape) - 1) + shape[1:2]) for shape in sample.shapes]
    traced = tf.function(lambda *xs: block(*xs, training=True), input_signature=signature)
    for increase in (0, 1, 2):
        xs = inputs(sample, increase=increase)
        assert relative_error(traced(*xs), eager(*xs, training=True)) < 1e-5
    for name, expected in attzoo.weights(eager).items():
        np.testing.assert_allclose(attzoo.weights(block)[name], expected, rtol=1e-5)


@pytest.mark.case79
@tensorflow_only
@models
@pytest.mark.one_of_each(share=2)
def test_saved_model_with_dynamic_sizes_equals_the_model(sample, make, tmp_path):
    import tensorflow as tf

    model = make()
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    for increase in (0, 1, 2):
        xs = inputs(sample, increase=increase)
        assert relative_error(exported.serve(xs), model(xs)) < 1e-5


@pytest.mark.case80
@tensorflow_only
@models
@pytest.mark.one_of_each(share=2)
def test_litert_model_with_fixed_sizes_equals_the_model(sample, make, tmp_path):
    model, xs = make(fixed_sizes=True), [x[:1] for x in inputs(sample)]
    assert relative_error(litert_output(model, xs, tmp_path), model(xs)) < 1e-5


# ---- invalid inputs ------------------------------------------------------------------------------------

ORDER = {FIRST: r"\(N, 8, \*S\)", LAST: r"\(N, \*S, 8\)"}   # the layouts in messages


def cbam(layout):
    """Return a CBAM in this layout."""
    return attzoo.create("cbam", 8, backend="keras", data_format=layout)


def gate(layout):
    """Return an attention gate in this layout."""
    return attzoo.create("attention_gate", 8, 6, backend="keras", data_format=layout)


@layouts
@pytest.mark.parametrize(
    ("case", "shape"),
    [
        pytest.param("wrong channels", (2, 7, 5, 4), marks=pytest.mark.case17),
        pytest.param("rank 2", (2, 8), marks=pytest.mark.case18),
        pytest.param("rank 3", (2, 8, 5), marks=pytest.mark.case19),
        pytest.param("rank 5", (2, 8, 5, 4, 3), marks=pytest.mark.case20),
        pytest.param("empty space", (2, 8, 0, 4), marks=pytest.mark.case15),
    ],
)
def test_invalid_shape_raises_in_the_layout_of_the_block(case, shape, layout):
    _, *rest = shape = to_layout(shape, layout)
    message = f"expected {ORDER[layout]} with 2 spatial axes .*, got {{}}"
    with pytest.raises(ValueError, match=message.format(re.escape(str(shape)))):
        cbam(layout)(np.zeros(shape, "float32"))
    if 0 not in shape:   # keras.Input raises its own error
        with pytest.raises(ValueError, match=message.format(re.escape(str((None, *rest))))):
            cbam(layout)(keras.Input(rest))


@pytest.mark.case22
@layouts
def test_input_in_the_other_layout_raises(layout):
    shape = to_layout((2, 8, 5, 4), LAST if layout == FIRST else FIRST)
    with pytest.raises(ValueError, match=f"expected {ORDER[layout]}"):
        cbam(layout)(np.zeros(shape, "float32"))


@layouts
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("int64", marks=pytest.mark.case30),
        pytest.param("uint8", marks=pytest.mark.case31),
        pytest.param("bool", marks=pytest.mark.case32),
        pytest.param("complex64", marks=pytest.mark.case33),
    ],
)
def test_invalid_dtype_raises(dtype, layout):
    with pytest.raises(TypeError, match=r"expected a floating-point input, got (int|uint8|bool|complex)"):
        cbam(layout)(np.zeros(to_layout((2, 8, 5, 4), layout), dtype))


@pytest.mark.case48
@layouts
@pytest.mark.parametrize("invalid", [None, "image", [1.0, 2.0]], ids=str)
def test_input_that_is_not_a_tensor_raises(invalid, layout):
    with pytest.raises((TypeError, ValueError), match="tensor"):
        cbam(layout)(invalid)


@tensorflow_only
@pytest.mark.parametrize("name", ["se", "eca", "spatial_attention", "cbam"])
def test_ragged_and_sparse_tensors_raise(name):
    import tensorflow as tf

    x = tf.ones((2, 3, 3, 4))
    block = attzoo.create(name, 4, backend="keras")
    with pytest.raises(TypeError, match=r"a dense tensor, got a RaggedTensor: convert it, as x\.to_tensor\(\) does"):
        block(tf.RaggedTensor.from_tensor(x))
    with pytest.raises(TypeError, match=r"a dense tensor, got a SparseTensor: convert it, as tf\.sparse\.to_dense"):
        block(tf.sparse.from_dense(x))


@layouts
def test_gate_raises_for_invalid_inputs(layout):
    shapes = (2, 8, 5, 4), (2, 6, 3, 2), (2, 7, 3, 2)
    x, g, wrong_channels = (np.zeros(to_layout(shape, layout), "float32") for shape in shapes)
    assert gate(layout)(x, g).shape == x.shape
    with pytest.raises(TypeError, match="'g'"):
        gate(layout)(x)
    with pytest.raises(TypeError, match=r"expected tensors as separate arguments, as block\(x, g\), got a list"):
        gate(layout)([x, g])
    with pytest.raises(TypeError, match="expected a tensor, got NoneType"):
        gate(layout)(x, None)
    with pytest.raises(ValueError, match=f"expected {ORDER[layout].replace('8', '6')}"):
        gate(layout)(x, wrong_channels)


@pytest.mark.case25
@layouts
def test_gate_raises_for_different_batch_sizes(layout):
    x, g = (np.zeros(to_layout(shape, layout), "float32") for shape in ((2, 8, 5, 4), (1, 6, 3, 2)))
    with pytest.raises(ValueError, match="expected x and g of one batch size, got 2 and 1"):
        gate(layout)(x, g)


@pytest.mark.parametrize(("dtype", "message"), [
    ("int32", "dtype must be a floating-point dtype, such as 'float32', got 'int32'"),
    ("int8_from_float32", r"dtype must not be quantized, got 'int8_from_float32': create the layer in a floating"),
])
def test_integer_or_quantized_dtype_raises(dtype, message):
    for name, args in (("se", (8,)), ("unet", (1, 2, (4, 6)))):
        with pytest.raises(ValueError, match=message):
            attzoo.create(name, *args, backend="keras", dtype=dtype)


def test_invalid_data_format_raises():
    with pytest.raises(ValueError, match="data_format must be one of 'channels_last', 'channels_first', got 'NCHW'"):
        cbam("NCHW")
