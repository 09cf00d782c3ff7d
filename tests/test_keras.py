"""Keras blocks live with the rest of Keras, on whichever backend Keras runs: models, files, policies, exporters.

KERAS_BACKEND chooses the backend; what only TensorFlow offers is skipped on the others.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from samples import LAST_OF_EACH, NET, SAMPLES, assert_starts_as, network, pooled_starts, pooling, seed_of

import attzoo
from attzoo.adapters import adapter
from attzoo.blocks.keras import Block
from attzoo.ops.keras import find, keras

BACKEND = keras.backend.backend()
FIRST, LAST = LAYOUTS = ("channels_first", "channels_last")
NORMED = [name for name, sample in SAMPLES.items() if sample.config.get("norm")]
# Outside of fit, JAX compiles every operation for every size
CHOSEN = LAST_OF_EACH if BACKEND == "jax" else list(SAMPLES)
every_sample = pytest.mark.parametrize("sample", [SAMPLES[name] for name in CHOSEN], ids=CHOSEN)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason=f"TensorFlow's own, and this is {BACKEND}")


@pytest.fixture(autouse=True)
def _settings():
    """Every test starts from one seed and leaves no policy behind."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def order(x, layout):
    """A channels-first array or shape in a layout."""
    if layout == FIRST:
        return x
    return np.moveaxis(x, 1, -1) if isinstance(x, np.ndarray) else (x[0], *x[2:], x[1])


def inputs(sample, layout=LAST, dtype="float32", **kwargs):
    return [order(x, layout).astype(dtype) for x in sample.arrays(**kwargs)]


def liven(block):
    """Running statistics away from their start, so that a norm is no identity."""
    rng = np.random.default_rng(1)
    arrays = attzoo.weights(block)
    for name, array in arrays.items():
        if name.endswith((".mean", ".var")):
            array[:] = rng.uniform(0.5, 2, array.shape)
    adapter("keras").write(block, arrays)   # which rounds to the block's dtype
    return block


def build(sample, layout=LAST, **kwargs):
    return liven(sample.create("keras", data_format=layout, **kwargs))


def functional(sample, layout=LAST, known=False, **kwargs):
    """A model of one block; batch and spatial sizes unknown, or the latter as in the sample."""
    shapes = [order(s if known else (s[0], s[1], *(None,) * (len(s) - 2)), layout)[1:] for s in sample.shapes]
    given = [keras.Input(shape) for shape in shapes]
    block = build(sample, layout, **kwargs)
    return keras.Model(given, block(*given)), block


def net(layout=LAST, known=False):
    """A model of the network of all blocks."""
    spaces = [shape[2:] if known else (None, None) for shape in NET.shapes]
    x, g = given = [keras.Input(order((None, c, *s), layout)[1:]) for c, s in zip((8, 6), spaces, strict=True)]
    made = []
    for name, sample in network().items():
        keras.utils.set_random_seed(seed_of(name))
        made.append(sample.create("keras", data_format=layout))
        x = made[-1](x, *[g] * (len(sample.shapes) - 1))
    keras.utils.set_random_seed(0)
    for block in made:
        liven(block)
    return keras.Model(given, x)


def blocks(model):
    """The blocks among a model's layers."""
    return [layer for layer in model.layers if isinstance(layer, Block)]


MODELS = {"net": (NET, net)} | {
    name: (SAMPLES[name], lambda sample=SAMPLES[name], **kwargs: functional(sample, **kwargs)[0])
    for name, sample in SAMPLES.items()
    if len(sample.shapes) > 1 and len(sample.shapes[0]) != 4   # those that resample along one axis and along three
}
models = pytest.mark.parametrize(("sample", "make"), MODELS.values(), ids=MODELS)


def array(tensor):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64")))


def off(got, wanted):
    """Largest difference, relative to the largest wanted value."""
    got, wanted = array(got), array(wanted)
    assert got.shape == wanted.shape
    assert np.isfinite(got).all()
    return abs(got - wanted).max() / abs(wanted).max()


def meaning(block, sample, **kwargs):
    """What the block's spec computes for the sample's inputs, in float64, in the block's layout."""
    weights = {name: w.astype(np.float64) for name, w in attzoo.weights(block).items()}
    return order(block.spec(*sample.arrays(**kwargs), weights=weights), block.data_format)


# ---- models --------------------------------------------------------------------------------------------


@layouts
@every_sample
def test_functional_model_of_unknown_sizes(sample, layout):
    model, block = functional(sample, layout)
    _, c, *space = sample.shapes[0]
    assert model.output.shape == order((None, c, *(None for _ in space)), layout)
    for more in (0, 1, 2):
        assert off(model(inputs(sample, layout, more=more)), meaning(block, sample, more=more)) < 1e-5


@layouts
@every_sample
def test_output_shape(sample, layout):
    block = sample.create("keras", data_format=layout, dtype="mixed_float16")
    shapes = [order(shape, layout) for shape in sample.shapes]
    assert tuple(block.compute_output_shape(*shapes)) == shapes[0]
    given = [keras.KerasTensor((None, *shape[1:])) for shape in shapes]
    output = block(*given)
    assert output.shape == (None, *shapes[0][1:])
    assert output.dtype == "float16"
    with pytest.raises(ValueError, match="expected"):
        block.compute_output_shape(*(order((n, c + 1, *space), layout) for n, c, *space in sample.shapes))


@pytest.mark.parametrize("name", [name for name in CHOSEN if len(SAMPLES[name].shapes) == 1])
def test_time_distributed(name):
    block = build(SAMPLES[name])
    (x,) = inputs(SAMPLES[name])
    y = keras.layers.TimeDistributed(block)(np.stack([x, 2 * x], axis=1))
    for i in range(2):
        assert off(y[:, i], block((i + 1) * x)) < 1e-6


class Subclassed(keras.Model):
    """A user's own network: a strided and a plain branch, joined by a gate."""

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
    """Full batches of plain descent lower the loss."""
    model.compile(keras.optimizers.SGD(0.05), "mse")
    loss = model.fit(xs, y, batch_size=len(y), epochs=3, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    assert loss[2] < loss[0]


def assert_predicts(model, xs, y):
    """Predicting in smaller batches, and evaluating, agree with calling the model."""
    predicted = model.predict(xs, batch_size=3, verbose=0)
    assert off(predicted, model(xs, training=False)) < 1e-5
    assert model.evaluate(xs, y, verbose=0) == pytest.approx(np.square(predicted - y).mean(), rel=1e-4)


def test_subclassed_model():
    rng = np.random.default_rng(0)
    model, x = Subclassed(), rng.normal(size=(4, 7, 6, 3)).astype("float32")
    y = model(x)
    assert y.shape == (4, 7, 6, 1)
    assert len(model.cbam.weights) == len(model.cbam.spec.weights)
    target = rng.normal(size=y.shape).astype("float32")
    assert_learns(model, x, target)
    assert_predicts(model, x, target)


@pytest.mark.parametrize("given", [[], [(None, None, 8)]], ids=["deferred", "given"])
def test_sequential_model(given):
    row = [sample.create("keras") for sample in network().values() if len(sample.shapes) == 1]
    model = keras.Sequential([*map(keras.Input, given), *row, keras.layers.GlobalAveragePooling2D()])
    x, y = inputs(NET, more=2)[0], np.ones((4, 8), "float32")
    assert_learns(model, x, y)
    assert [len(block.weights) for block in row] == [len(block.spec.weights) for block in row]


@every_sample
def test_fit_channels_first(sample):
    """TensorFlow on a CPU has no channels-first convolution of its own; blocks train all the same."""
    keras.utils.set_random_seed(3)   # not one whose hidden units are all 0 for these inputs: nothing would reach them
    model, block = functional(sample, FIRST)
    xs = inputs(sample, FIRST, more=2)
    before = attzoo.weights(block)
    assert_learns(model, xs, np.random.default_rng(1).normal(size=xs[0].shape).astype("float32"))
    for name, after in attzoo.weights(block).items():
        cancelled = name.endswith(".bias") and name.replace(".bias", "_norm.bias") in before   # a norm takes it out
        assert cancelled or (after != before[name]).any(), name


@tensorflow_only
def test_fit_compiled_by_xla():
    model, eager = net(FIRST), net(FIRST)
    eager.set_weights(model.get_weights())
    xs = inputs(NET, FIRST)
    y = np.random.default_rng(1).normal(size=xs[0].shape).astype("float32")
    for each, how in ((model, {"jit_compile": True}), (eager, {"run_eagerly": True})):
        each.compile(keras.optimizers.SGD(0.05), "mse", **how)
        each.fit(xs, y, batch_size=2, epochs=2, verbose=0)
    for got, wanted in zip(model.weights, eager.weights, strict=True):
        np.testing.assert_allclose(array(got), array(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.case11
@every_sample
def test_empty_batch(sample):
    model, _ = functional(sample)
    xs = [x[:0] for x in inputs(sample)]
    assert model(xs).shape == xs[0].shape
    assert model.predict_on_batch(xs).shape == xs[0].shape


# ---- training and freezing -------------------------------------------------------------------------------


@pytest.mark.case60
@pytest.mark.parametrize("name", NORMED)
def test_running_statistics_move_in_training_only(name):
    block, xs = build(SAMPLES[name]), inputs(SAMPLES[name])
    before = attzoo.weights(block)
    resting = block(*xs, training=False)
    assert off(block(*xs), resting) == 0
    assert all((after == before[k]).all() for k, after in attzoo.weights(block).items())
    assert off(block(*xs, training=True), resting) > 1e-3
    for k, after in attzoo.weights(block).items():
        assert (after == before[k]).all() != k.endswith((".mean", ".var")), k


@every_sample
def test_frozen(sample):
    """trainable=False: nothing to train, and norms rest even in training, as Keras's own do."""
    block, xs = build(sample), inputs(sample)
    before = attzoo.weights(block)
    resting = block(*xs, training=False)
    block.trainable = False
    assert not block.trainable_weights
    assert off(block(*xs, training=True), resting) < 1e-6   # some CPUs have other kernels for what needs no gradient
    assert all((after == before[k]).all() for k, after in attzoo.weights(block).items())


@pytest.mark.case61
@layouts
@pytest.mark.parametrize("name", NORMED)
def test_one_value_per_channel_has_no_statistics(name, layout):
    sample = SAMPLES[name]
    block = build(sample, layout)
    steps = getattr(block.spec, "strides", (1,) * (len(sample.shapes[0]) - 2))
    xs = [np.ones(order((1, shape[1], *steps), layout), "float32") for shape in sample.shapes]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(*xs, training=True)
    assert np.isfinite(array(block(*xs))).all()


@tensorflow_only
@pytest.mark.case61
def test_one_value_per_channel_of_a_size_not_known_before():
    """A graph cannot raise for it; the running statistics must survive."""
    model, block = functional(SAMPLES["spatial_attention-1d"])
    model.compile("sgd", "mse")
    x = np.ones((1, 1, 3), "float32")
    model.fit(x, x, verbose=0)
    assert all(np.isfinite(w).all() for w in attzoo.weights(block).values())


# ---- starts and variables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [SAMPLES[name] for name in LAST_OF_EACH], ids=LAST_OF_EACH)
def test_starts_as_the_spec_says(sample):
    keras.utils.set_random_seed(0)
    arrays = pooled_starts(sample, attzoo.weights, "keras")
    for name, weight in sample.create("numpy").weights.items():
        assert_starts_as(arrays[name], weight)


@every_sample
def test_seed_fixes_the_start(sample):
    starts = []
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        starts.append(attzoo.weights(sample.create("keras")))
    same, other = ([(starts[0][k] == s[k]).all() for k in starts[0]] for s in starts[1:])
    assert all(same)
    assert not all(other)


@every_sample
def test_variables_are_tracked_and_named(sample):
    model, block = functional(sample, name="mine")
    spec = block.spec.weights
    assert len(model.weights) == len(spec)
    assert len(model.trainable_weights) == sum(weight.trainable for weight in spec.values())
    assert model.count_params() == sum(weight.size for weight in spec.values())
    for name in spec:
        *path, leaf = name.split(".")
        variable = find(block, name)
        assert variable.path == "/".join(["mine", *path, variable.name])
        assert variable.name == leaf or (variable.name, leaf) == ("kernel", "weight")


def test_summary():
    lines = []
    model = net()
    model.summary(line_length=150, print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    for block in blocks(model):
        assert block.name in text
        assert f"({type(block).__name__})" in text
    assert f"Total params: {model.count_params():,}" in text


# ---- files and configs -----------------------------------------------------------------------------------


@layouts
@every_sample
def test_config_round_trip(sample, layout):
    block = sample.create("keras", data_format=layout, dtype="mixed_bfloat16", name="mine", trainable=False)
    config = json.loads(json.dumps(block.get_config()))
    for twin in (
        type(block).from_config(config),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(block)),
    ):
        assert twin.get_config() == config
        assert (twin.spec, twin.name, twin.data_format, twin.trainable) == (block.spec, "mine", layout, False)
        assert (twin.compute_dtype, twin.variable_dtype) == ("bfloat16", "float32")


@every_sample
def test_clone(sample):
    model, block = functional(sample)
    twin = keras.models.clone_model(model)
    assert twin.layers[-1].spec == block.spec
    twin.set_weights(model.get_weights())
    assert off(twin(inputs(sample)), model(inputs(sample))) == 0


@pytest.mark.case81
@layouts
@every_sample
def test_saved_model_file(sample, layout, tmp_path):
    model, block = functional(sample, layout)
    xs = inputs(sample, layout)
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras")
    assert (twin.layers[-1].spec, twin.layers[-1].data_format) == (block.spec, layout)
    assert off(twin(xs), model(xs)) == 0
    assert all((w == attzoo.weights(twin.layers[-1])[k]).all() for k, w in attzoo.weights(block).items())


@pytest.mark.case81
@every_sample
def test_saved_weights_file(sample, tmp_path):
    model, _ = functional(sample)
    keras.utils.set_random_seed(5)
    twin, _ = functional(sample)
    xs = inputs(sample)
    assert off(twin(xs), model(xs)) > 0
    model.save_weights(tmp_path / "model.weights.h5")
    twin.load_weights(tmp_path / "model.weights.h5")
    assert off(twin(xs), model(xs)) == 0


RELOAD = """
import sys
from contextlib import suppress
with suppress(ImportError):
    import triton   # before TensorFlow, as attzoo does it
import keras
import numpy as np
model, given, out = sys.argv[1:]
try:
    keras.saving.load_model(model)
except TypeError as err:
    print(str(err).partition("Exception encountered: ")[2])
assert "attzoo" not in sys.modules
import attzoo.keras
with np.load(given) as xs:
    np.save(out, keras.ops.convert_to_numpy(keras.saving.load_model(model)([xs["x"], xs["g"]])))
"""


@pytest.mark.case81
@pytest.mark.case82
def test_reload_in_a_fresh_process(tmp_path):
    """Keras names the class that it lacks until attzoo.keras is imported; then the file is all it takes."""
    model, (x, g) = net(), inputs(NET)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "inputs.npz", x=x, g=g)
    files = [tmp_path / name for name in ("model.keras", "inputs.npz", "y.npy")]
    env = os.environ | {"KERAS_BACKEND": BACKEND}
    run = subprocess.run([sys.executable, "-c", RELOAD, *files], capture_output=True, text=True, timeout=200, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"Could not locate class '{type(blocks(model)[0]).__name__}'")
    assert off(np.load(tmp_path / "y.npy"), model([x, g])) < 1e-6   # another process may sum in another order


def test_pickle():
    model = net()
    twin = pickle.loads(pickle.dumps(model))
    assert off(twin(inputs(NET)), model(inputs(NET))) == 0


# ---- precision -----------------------------------------------------------------------------------------

POLICIES = {   # policy -> compute dtype, variable dtype, how far from the float64 meaning
    "mixed_float16": ("float16", "float32", 4e-3),
    "mixed_bfloat16": ("bfloat16", "float32", 3e-2),
    "float16": ("float16", "float16", 4e-3),
    "bfloat16": ("bfloat16", "bfloat16", 3e-2),
    "float64": ("float64", "float64", 1e-12),
}


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"] if BACKEND == "jax" else POLICIES)
@every_sample
def test_policy(sample, policy):
    compute, variable, bound = POLICIES[policy]
    if policy == "float64" and adapter("keras").precision(policy) != policy:
        bound = 1e-5   # Keras on torch multiplies matrices in float32
    block = build(sample, dtype=policy)
    y = block(*inputs(sample, dtype="float64"))
    assert keras.backend.standardize_dtype(y.dtype) == compute
    assert {keras.backend.standardize_dtype(w.dtype) for w in block.weights} == {variable}
    assert off(y, meaning(block, sample)) < bound
    cotangent = np.ones(sample.shapes[0])
    run = adapter("keras").run(block, sample.arrays(), cotangent, training=True)
    assert all(np.isfinite(g).all() for g in [*run.input_gradients, *run.weight_gradients.values()])
    assert any(g.any() for g in run.weight_gradients.values())


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@every_sample
def test_attention_takes_what_a_call_takes(sample, policy):
    block = build(sample, dtype=policy)
    weights = {name: w.astype(np.float64) for name, w in attzoo.weights(block).items()}
    wanted = order(block.spec.attention(*sample.arrays(), weights=weights), LAST)
    for xs in (inputs(sample, dtype="float64"), list(map(keras.ops.convert_to_tensor, inputs(sample)))):
        a = block.attention(*xs)
        assert keras.backend.standardize_dtype(a.dtype) == block.compute_dtype
        assert off(a, wanted) < (1e-5 if policy == "float32" else 4e-3)


def test_global_policy():
    keras.config.set_dtype_policy("mixed_float16")
    model, _ = functional(SAMPLES["cbam"])
    xs = inputs(SAMPLES["cbam"])
    assert keras.backend.standardize_dtype(model(xs).dtype) == "float16"
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {"float32"}
    assert_learns(model, xs, np.ones_like(xs[0]))


@pytest.mark.case34
@every_sample
def test_float64_array_is_taken_in_the_blocks_own_dtype(sample):
    y = build(sample)(*inputs(sample, dtype="float64"))
    assert keras.backend.standardize_dtype(y.dtype) == "float32"


# ---- graphs and exporters ------------------------------------------------------------------------------


@tensorflow_only
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", pooling())
def test_a_graph_holds_a_mean(name, dtype):
    """A sum over space would pass float16's maximum where a graph is converted to it."""
    import tensorflow as tf

    block = attzoo.create(name, 4, backend="keras", dtype=dtype)
    given = tf.TensorSpec((None, None, None, 4), dtype)
    kinds = {op.type for op in tf.function(block).get_concrete_function(given).graph.get_operations()}
    assert "Mean" in kinds
    assert "Sum" not in kinds


@tensorflow_only
@every_sample
def test_tf_function_of_unknown_sizes(sample):
    import tensorflow as tf

    block, eager = build(sample), build(sample)
    attzoo.load_weights(eager, attzoo.weights(block))
    signature = [tf.TensorSpec((None,) * (len(shape) - 1) + shape[1:2]) for shape in sample.shapes]
    traced = tf.function(lambda *xs: block(*xs, training=True), input_signature=signature)
    for more in (0, 1, 2):
        xs = inputs(sample, more=more)
        assert off(traced(*xs), eager(*xs, training=True)) < 1e-5
    for name, wanted in attzoo.weights(eager).items():
        np.testing.assert_allclose(attzoo.weights(block)[name], wanted, rtol=1e-5)


@pytest.mark.case79
@tensorflow_only
@models
def test_saved_model_of_unknown_sizes(sample, make, tmp_path):
    import tensorflow as tf

    model = make()
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    for more in (0, 1, 2):
        xs = inputs(sample, more=more)
        assert off(exported.serve(xs), model(xs)) < 1e-5


@pytest.mark.case80
@tensorflow_only
@models
def test_litert_of_fixed_sizes(sample, make, tmp_path):
    import tensorflow as tf

    model = make(known=True)
    model.export(str(tmp_path / "model.tflite"), format="litert", verbose=False)   # Keras 3.13 takes no Path here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)   # TensorFlow would rather have us install ai-edge-litert
        interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    xs = [x[:1] for x in inputs(sample)]
    for x in xs:
        (place,) = (d["index"] for d in interpreter.get_input_details() if tuple(d["shape"]) == x.shape)
        interpreter.set_tensor(place, x)
    interpreter.invoke()
    assert off(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), model(xs)) < 1e-5


# ---- refusals ------------------------------------------------------------------------------------------

ORDER = {FIRST: r"\(N, 8, \*S\)", LAST: r"\(N, \*S, 8\)"}   # how a message spells the layout


def cbam(layout):
    return attzoo.create("cbam", 8, backend="keras", data_format=layout)


def gate(layout):
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
def test_refuses_a_shape_in_the_users_layout(case, shape, layout):
    _, *rest = shape = order(shape, layout)
    says = f"expected {ORDER[layout]} with 2 spatial axes .*, got {{}}"
    with pytest.raises(ValueError, match=says.format(re.escape(str(shape)))):
        cbam(layout)(np.zeros(shape, "float32"))
    if 0 not in shape:   # keras.Input has a word of its own on that
        with pytest.raises(ValueError, match=says.format(re.escape(str((None, *rest))))):
            cbam(layout)(keras.Input(rest))


@pytest.mark.case22
@layouts
def test_refuses_the_other_layout(layout):
    shape = order((2, 8, 5, 4), LAST if layout == FIRST else FIRST)
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
def test_refuses_a_dtype(dtype, layout):
    with pytest.raises(TypeError, match=r"expected a floating-point input, got (int|uint8|bool|complex)"):
        cbam(layout)(np.zeros(order((2, 8, 5, 4), layout), dtype))


@pytest.mark.case48
@layouts
@pytest.mark.parametrize("what", [None, "image", [1.0, 2.0]], ids=str)
def test_refuses_what_is_no_tensor(what, layout):
    with pytest.raises((TypeError, ValueError), match="tensor"):
        cbam(layout)(what)


@layouts
def test_gate_refuses(layout):
    shapes = (2, 8, 5, 4), (2, 6, 3, 2), (2, 7, 3, 2)
    x, g, wrong = (np.zeros(order(shape, layout), "float32") for shape in shapes)
    assert gate(layout)(x, g).shape == x.shape
    with pytest.raises(TypeError, match="'g'"):
        gate(layout)(x)
    with pytest.raises(TypeError, match=r"expected tensors as arguments of their own, block\(x, g\), got a list"):
        gate(layout)([x, g])
    with pytest.raises(TypeError, match="expected a tensor, got NoneType"):
        gate(layout)(x, None)
    with pytest.raises(ValueError, match=f"expected {ORDER[layout].replace('8', '6')}"):
        gate(layout)(x, wrong)


@pytest.mark.case25
@layouts
def test_gate_refuses_another_batch_size(layout):
    x, g = (np.zeros(order(shape, layout), "float32") for shape in ((2, 8, 5, 4), (1, 6, 3, 2)))
    with pytest.raises(ValueError, match="expected x and g of one batch size, got 2 and 1"):
        gate(layout)(x, g)


@pytest.mark.parametrize(("dtype", "says"), [
    ("int32", "dtype must be that of floating-point numbers, got 'int32'"),
    ("int8_from_float32", "dtype must be that of a layer not quantized yet, got 'int8_from_float32': call quantize"),
])
def test_refuses_a_dtype_of_its_own(dtype, says):
    for name, args in (("se", (8,)), ("unet", (1, 2, (4, 6)))):
        with pytest.raises(ValueError, match=says):
            attzoo.create(name, *args, backend="keras", dtype=dtype)


def test_refuses_a_data_format():
    with pytest.raises(ValueError, match="data_format must be one of 'channels_last', 'channels_first', got 'NCHW'"):
        cbam("NCHW")
