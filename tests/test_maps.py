import copy
import io
import pickle
import threading
from contextvars import copy_context

import numpy as np
import pytest
import torch
from samples import SAMPLES
from threads import in_thread
from torch import nn

import attzoo
from attzoo.adapters import adapter, backend_of
from attzoo.contract import by_name
from attzoo.ops.keras import keras

every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
BACKEND = keras.backend.backend()
NAME = "skip" if BACKEND == "torch" else "skip.0"   # with the torch backend, names may not contain a dot
EAGERLY = "called eagerly, model\\(x\\)"


class Holder(nn.Module):
    """A third-party model with a nested block."""

    def __init__(self, block):
        super().__init__()
        self.layer = nn.ModuleList([nn.Identity(), nn.ModuleDict({"attention": block})])

    def forward(self, *inputs):
        return self.layer[1]["attention"](*inputs)


class ModuleAttention(nn.Module):
    """A third-party block whose attention is a module."""

    def __init__(self):
        super().__init__()
        self.spec = attzoo.get("se", backend="numpy")(3)
        self.attention = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.attention(x)


def net(**kwargs):
    """Return a torch network with two blocks."""
    torch.manual_seed(0)
    se = attzoo.create("se", 4, backend="torch", reduction=2)
    cbam = attzoo.create("cbam", 4, backend="torch", reduction=2, kernel_size=3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), se, nn.Conv2d(4, 4, 1), cbam)


def keras_net(layout="channels_last"):
    """Return a Keras model with two blocks."""
    input_shape = (3, 8, 7) if layout == "channels_first" else (8, 7, 3)
    inputs = keras.Input(input_shape)
    h = attzoo.create("spatial_attention", 3, backend="keras", kernel_size=3, data_format=layout, name="look")(inputs)
    return keras.Model(inputs, attzoo.create("eca", 3, backend="keras", data_format=layout, name="weigh")(h))


def image(seed=0):
    """Return a batch of two random images."""
    return np.random.default_rng(seed).normal(size=(2, 3, 8, 7)).astype(np.float32)


def functional(block, shapes, layout):
    """Return a functional Keras model of a block, for inputs of these shapes, channels first."""
    sample_shapes = [shape[1:] if layout == "channels_first" else (*shape[2:], shape[1]) for shape in shapes]
    inputs = [keras.Input(shape) for shape in sample_shapes]
    return keras.Model(inputs, block(*inputs))


def state(model):
    """Return the attributes of every part of a model, by identity."""
    parts = model._flatten_layers() if isinstance(model, keras.Layer) else model.modules()
    return [
        {name: (id(value), len(value) if isinstance(value, dict) else None) for name, value in vars(part).items()}
        for part in parts
    ]


def expected(block, inputs):
    """Return the expected maps by path within a block; assert that a CBAM's map is the product of its parts' maps."""
    if not hasattr(block, "channel"):
        arrays = by_name(adapter(backend_of(block)).attention(block, inputs))
        return {f".{name}" if name else "": array for name, array in arrays.items()}
    framework = adapter(backend_of(block))
    channel = framework.attention(block.channel, inputs)
    spatial = framework.attention(block.spatial, [inputs[0] * channel])
    np.testing.assert_allclose(channel * spatial, framework.attention(block, inputs), rtol=1e-6)
    return {".channel": channel, ".spatial": spatial}


# ---- recorded maps ---------------------------------------------------------------------------------


@every_sample
def test_maps_of_torch_models_equal_the_coefficients_of_their_blocks(sample):
    torch.manual_seed(0)
    block, x = sample.create("torch").eval(), [array.astype(np.float32) for array in sample.arrays()]
    model, tensors = Holder(block), [torch.from_numpy(array) for array in x]
    output_before, state_before = model(*tensors), state(model)
    with attzoo.attention_maps(model) as recorded:
        assert torch.equal(model(*tensors), output_before)
    assert state(model) == state_before
    correct = {f"layer.1.attention{path}": array for path, array in expected(block, x).items()}
    assert list(recorded) == list(correct)
    for path, a in correct.items():
        assert recorded[path].dtype == np.float32
        np.testing.assert_array_equal(recorded[path], a)


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@every_sample
def test_maps_of_functional_keras_models_in_both_layouts(sample, layout):
    keras.utils.set_random_seed(0)
    block = sample.create("keras", data_format=layout, name=NAME)
    x = [array.astype(np.float32) for array in sample.arrays()]
    model = functional(block, [array.shape for array in x], layout)
    tensors = [array if layout == "channels_first" else np.moveaxis(array, 1, -1) for array in x]
    output_before, state_before = keras.ops.convert_to_numpy(model(tensors)), state(model)
    with attzoo.attention_maps(model) as recorded:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(tensors)), output_before)
    assert state(model) == state_before
    correct = {f"{block.name}{path}": array for path, array in expected(block, x).items()}
    assert list(recorded) == list(correct)
    for path, a in correct.items():
        np.testing.assert_allclose(recorded[path], a, rtol=1e-6)


@pytest.mark.parametrize("block", [None, "cbam"])
def test_unet_has_the_same_maps_in_both_frameworks(block):
    torch.manual_seed(0)
    options = {"block": block, "block_options": {"reduction": 2, "kernel_size": 3}} if block else {}
    torch_unet = attzoo.create("unet", 3, 2, (4, 4, 4), backend="torch", **options)
    keras_unet = attzoo.convert(torch_unet, backend="keras")
    recorded = {}
    for model in (torch_unet, keras_unet):
        backend = backend_of(model)
        with attzoo.attention_maps(model) as recorded[backend]:
            adapter(backend).forward(model, [image()], training=False)
    gates = {"skip.0": (2, 1, 8, 7), "skip.1": (2, 1, 4, 4)}
    assert {path: array.shape for path, array in recorded["torch"].items() if path.startswith("skip")} == gates
    assert len(recorded["torch"]) == (2 if block is None else 2 + 5 * 2)
    assert "encoder.1.block.channel" in recorded["torch"] or block is None
    assert list(recorded["torch"]) == list(recorded["keras"])
    for path, a in recorded["torch"].items():
        np.testing.assert_allclose(recorded["keras"][path], a, atol=1e-5)


def test_coefficients_are_computed_once_and_gradients_are_unchanged(monkeypatch):
    model, x = net(), torch.from_numpy(image()).requires_grad_()
    expected = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    counts, se = [], type(model[1])
    compute = se.attention
    monkeypatch.setattr(se, "attention", lambda self, x: counts.append(1) or compute(self, x))
    with attzoo.attention_maps(model) as recorded:
        y = model(x)
    assert counts == [1]
    gradients = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert torch.equal(gradient, expected_gradient)
    recorded["1"][:] = 7   # a copy, so the model does not change
    with attzoo.attention_maps(model) as second_maps:
        assert torch.equal(model(x), y)
    assert second_maps["1"].max() < 1


def test_map_is_that_of_the_latest_call_and_last_use_of_a_block():
    se, x = attzoo.create("se", 4, backend="torch", reduction=2), [torch.rand(n, 4, 5, 5) for n in (1, 2)]
    model = nn.Sequential(se, nn.Conv2d(4, 4, 1), se)
    with attzoo.attention_maps(model) as recorded:
        model(x[0])
        assert recorded["0"].shape == (1, 4, 1, 1)
        model(x[1])
    assert list(recorded) == ["0"]
    expected = se.attention(model[:2](x[1])).detach().numpy()
    np.testing.assert_array_equal(recorded["0"], expected)


def test_path_of_a_shared_keras_block_is_its_first():
    inner = keras_net()
    inputs = keras.Input((8, 7, 3))
    model = keras.Model(inputs, keras.Sequential([inner], name="again")(inner(inputs)))
    with attzoo.attention_maps(model) as recorded:
        model(np.moveaxis(image(), 1, -1))
    assert list(recorded) == [f"{inner.name}.look", f"{inner.name}.weigh"]
    x = np.moveaxis(keras.ops.convert_to_numpy(inner(np.moveaxis(image(), 1, -1))), -1, 1)
    expected = adapter("keras").attention(inner.get_layer("look"), [x])
    np.testing.assert_allclose(recorded[f"{inner.name}.look"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, np.float32), (torch.bfloat16, np.float32), (torch.float64, np.float64)],
    ids=str,
)
def test_maps_are_float32_or_float64(dtype, expected):
    model, x = net().to(dtype), torch.from_numpy(image()).to(dtype)
    with attzoo.attention_maps(model) as recorded:
        model(x)
    assert {a.dtype for a in recorded.values()} == {np.dtype(expected)}
    np.testing.assert_array_equal(recorded["1"], model[1].attention(model[0](x)).detach().to(torch.float64).numpy())


def test_maps_with_autocast_and_data_parallel():
    model = nn.DataParallel(net())
    with attzoo.attention_maps(model) as recorded, torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.from_numpy(image()))
    assert list(recorded) == ["module.1", "module.3.channel", "module.3.spatial"]
    assert {a.dtype for a in recorded.values()} == {np.dtype(np.float32)}
    model.device_ids = [0, 1]   # as on a machine with two GPUs
    with pytest.raises(ValueError, match="on one device, got DataParallel on 2"), attzoo.attention_maps(model):
        raise AssertionError


def test_maps_of_subclassed_nested_and_unbuilt_keras_models():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = attzoo.create("se", 3, backend="keras", name="same")
            self.others = [attzoo.create("eca", 3, backend="keras", name="same"), keras_net()]
            self.others[1].name = "inner"

        def call(self, x):
            for layer in (self.first, *self.others):
                x = layer(x)
            return x

    x = np.moveaxis(image(), 1, -1)
    model = keras.Sequential([Model()])
    with attzoo.attention_maps(model) as recorded:
        model(x)
    name = model.layers[0].name
    assert sorted(recorded) == [f"{name}.{path}" for path in ("inner.look", "inner.weigh", "same", "same_1")]
    assert recorded[f"{name}.inner.look"].shape == (2, 1, 8, 7)
    assert recorded[f"{name}.same"].shape == (2, 3, 1, 1)


def test_maps_of_a_single_block_and_of_blocks_with_their_own_attention():
    se = attzoo.create("se", 3, backend="torch")
    with attzoo.attention_maps(se) as recorded:
        se(torch.from_numpy(image()))
    assert list(recorded) == [""]
    model = nn.Sequential(ModuleAttention())
    with attzoo.attention_maps(model) as recorded:
        model(torch.from_numpy(image()))
    assert recorded["0"].shape == (2, 1, 8, 7)
    assert isinstance(model[0].attention, nn.Sequential)
    attention = model[0].attention
    vars(model[0])["attention"] = attention.forward   # an attribute of the instance, as in Keras
    with attzoo.attention_maps(model) as recorded:
        model(torch.from_numpy(image()))
    assert vars(model[0])["attention"] == attention.forward


def test_attention_attribute_of_a_keras_instance_is_restored():
    model = keras_net()
    attention = model.layers[1].attention
    vars(model.layers[1])["attention"] = attention
    with attzoo.attention_maps(model) as recorded:
        model(np.moveaxis(image(), 1, -1))
    assert vars(model.layers[1])["attention"] is attention
    assert "look" in recorded


# ---- the model is unchanged ------------------------------------------------------------------------


def test_errors_propagate_and_the_model_is_restored():
    model = net()
    model(torch.from_numpy(image()))
    state_before = state(model)
    with pytest.raises(ZeroDivisionError), attzoo.attention_maps(model):
        1 / len(model(torch.from_numpy(image()))[:0])
    assert state(model) == state_before
    with pytest.raises(RuntimeError, match="channels"), attzoo.attention_maps(model):
        model(torch.rand(1, 5, 8, 8))
    assert state(model) == state_before
    with pytest.raises(ZeroDivisionError), attzoo.attention_maps(model):   # before any call
        raise ZeroDivisionError
    assert state(model) == state_before


@pytest.mark.parametrize("replaced_before", [False, True])
def test_attention_that_the_user_sets_inside_is_kept(replaced_before):
    block, x = attzoo.create("se", 3, backend="torch"), torch.from_numpy(image())
    if replaced_before:
        block.attention = lambda x: x[:, :, :1, :1]
    with attzoo.attention_maps(block):
        block(x)
        block.attention = set_inside = lambda x: torch.ones(len(x), 3, 1, 1)
        block(x)
    assert vars(block)["attention"] is set_inside
    assert "__reduce_ex__" not in vars(block)
    torch.testing.assert_close(block(x), x)


def test_recordings_may_be_nested_and_end_in_any_order():
    model, x = net(), torch.from_numpy(image())
    model(x)
    state_before = state(model)
    with attzoo.attention_maps(model) as outer:
        with attzoo.attention_maps(model[1]) as inner:
            model(x)
        with attzoo.attention_maps(model):
            model(2 * x)
    np.testing.assert_array_equal(inner[""], model[1].attention(model[0](x)).detach().numpy())
    np.testing.assert_array_equal(outer["1"], model[1].attention(model[0](2 * x)).detach().numpy())
    assert state(model) == state_before
    first_context, second_context = attzoo.attention_maps(model), attzoo.attention_maps(model)
    first_maps, second_maps = first_context.__enter__(), second_context.__enter__()
    model(x)
    first_context.__exit__(None, None, None)
    model(2 * x)
    second_context.__exit__(None, None, None)
    np.testing.assert_array_equal(first_maps["1"], inner[""])
    np.testing.assert_array_equal(second_maps["1"], outer["1"])
    assert state(model) == state_before


# ---- threads and copies ----------------------------------------------------------------------------


def models():
    """Return a network and a function that calls it, for each framework."""
    torch_net, keras_model = net(), keras_net()
    return [
        (torch_net, lambda model, x: model(torch.from_numpy(x))),
        (keras_model, lambda model, x: model(np.moveaxis(x, 1, -1))),
    ]


every_framework = pytest.mark.parametrize("framework", [0, 1], ids=["torch", "keras"])


def record(model, call, x):
    """Return the maps of one call."""
    with attzoo.attention_maps(model) as recorded:
        call(model, x)
    return dict(recorded)


def assert_equal(actual, expected):
    """Assert that maps have the same paths in the same order and equal arrays."""
    assert list(actual) == list(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(actual[path], array)


@every_framework
def test_calls_in_other_threads_are_not_recorded(framework):
    model, call = models()[framework]
    expected = record(model, call, image())
    with attzoo.attention_maps(model) as recorded:
        in_thread(lambda: call(model, image(1)))
        assert not recorded
        call(model, image())
        in_thread(lambda: call(model, image(1)))
    assert_equal(recorded, expected)
    with pytest.raises(ValueError, match=r"records .*, no calls of other threads"), attzoo.attention_maps(model):
        in_thread(lambda: call(model, image()))


@every_framework
def test_each_of_eight_threads_records_its_own_calls(framework):
    model, call = models()[framework]
    state_before, recorded, barrier = state(model), {}, threading.Barrier(8)

    def work(i):
        with attzoo.attention_maps(model) as recorded[i]:
            barrier.wait(20)
            for _ in range(3):
                call(model, image(i))
            barrier.wait(20)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(attributes) for attributes in state(model)] == [set(attributes) for attributes in state_before]
    for i in range(8):
        assert_equal(recorded[i], record(model, call, image(i)))


@every_framework
def test_calls_in_a_copy_of_the_context_are_recorded_until_the_end(framework):
    model, call = models()[framework]
    expected = record(model, call, image())
    with attzoo.attention_maps(model) as recorded:
        context = copy_context()
        in_thread(lambda: context.run(call, model, image()))
        assert_equal(recorded, expected)
    in_thread(lambda: context.run(call, model, image(1)))
    context.run(call, model, image(1))
    with attzoo.attention_maps(model):   # the old context runs through its taps
        call(model, image(1))
        context.run(call, model, image(1))
    assert_equal(recorded, expected)


def save_and_load(model):
    """Return a copy of a model through torch.save."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def clone(model):
    """Return a clone of a Keras model with the same weights."""
    cloned = keras.models.clone_model(model)
    cloned.set_weights(model.get_weights())
    return cloned


COPIES = {   # framework, and function that copies a model
    "deepcopy": (0, copy.deepcopy),
    "pickle": (0, lambda model: pickle.loads(pickle.dumps(model))),
    "torch.save": (0, save_and_load),
    "copy": (0, lambda model: nn.Sequential(model[0], copy.copy(model[1]), model[2], copy.deepcopy(model[3]))),
    "averaged": (0, lambda model: torch.optim.swa_utils.AveragedModel(model).module),
    "deepcopy in Keras": (1, copy.deepcopy),
    "clone_model": (1, clone),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_made_inside_are_not_recorded(kind):
    framework, copy_model = COPIES[kind]
    model, call = models()[framework]
    expected, y = record(model, call, image()), call(model, image())
    with attzoo.attention_maps(model) as recorded:
        call(model, image())
        copied = copy_model(model)
        call(copied, image(1))
        assert_equal(recorded, expected)
    call(copied, image(1))
    assert_equal(recorded, expected)
    assert np.array_equal(*(z.detach() if framework == 0 else z for z in (call(copied, image()), y)))
    parts = copied._flatten_layers() if framework else copied.modules()
    assert not any({"attention", "__reduce_ex__"} & set(vars(part)) for part in parts)
    assert_equal(record(copied, call, image()), expected)


def test_copies_keep_a_replaced_attention():
    class Replacement:
        def __init__(self, block):
            self.block = block

        def __call__(self, x):
            return type(self.block).attention(self.block, x) * 0

    model = net()
    vars(model[1])["attention"] = Replacement(model[1])
    with attzoo.attention_maps(model) as recorded:
        copied = copy.deepcopy(model)
        model(torch.from_numpy(image()))
    assert isinstance(vars(copied[1])["attention"], Replacement)
    assert vars(copied[1])["attention"].block is copied[1]
    assert not copied(torch.from_numpy(image())).isnan().any()
    assert not recorded["1"].any()


class Copied(ModuleAttention):
    """A block with its own __deepcopy__."""

    def __deepcopy__(self, memo):
        copied = type(self)()
        copied.__dict__.update(copy.deepcopy(vars(self), memo | {id(self): copied}))
        return copied


def test_copies_by_a_custom_deepcopy_are_not_recorded():
    model = nn.Sequential(Copied())
    x = [torch.from_numpy(image(i)) for i in (0, 1)]
    with attzoo.attention_maps(model) as recorded:
        model(x[0])
        copied = copy.deepcopy(model)
        with torch.no_grad():
            copied[0].attention.attention[0].bias += 1
        copied(x[1])
    np.testing.assert_array_equal(recorded["0"], model[0].attention(x[0]).detach())
    assert not torch.equal(copied(x[0]), model(x[0]))
    with attzoo.attention_maps(copied) as twin_maps:
        copied(x[0])
    assert not np.array_equal(twin_maps["0"], recorded["0"])


@pytest.mark.parametrize("name", ["cbam", "attention_gate"])
def test_other_threads_keep_the_fast_form(name):
    from attzoo.blocks.attention_gate import cpu as gate_cpu
    from attzoo.fast import cpu

    options = {"gating_channels": 4} if name == "attention_gate" else {"kernel_size": 3}
    block = attzoo.create(name, 4, backend="torch", **options).eval()
    xs = [torch.rand(1, 4, 600, 600)] * len(block.spec.inputs)
    module, function = (gate_cpu, "gated") if name == "attention_gate" else (cpu, "scale")
    calls, original = [], getattr(module, function)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), attzoo.attention_maps(block):
        patch.setattr(module, function, lambda *args: calls.append(1) or original(*args))
        block(*xs)
        assert not calls

        def work():
            with torch.no_grad():
                return block(*xs)

        in_thread(work)
        assert calls == [1]


# ---- calls without values --------------------------------------------------------------------------


def test_models_without_blocks_raise():
    with pytest.raises(TypeError, match="expected a model of torch or Keras, got str"), attzoo.attention_maps("net"):
        raise AssertionError
    for model in (nn.Sequential(nn.Linear(2, 2)), keras.Sequential([keras.layers.Dense(2)])):
        expected = "expected a model that contains attention blocks, got a Sequential without any"
        with pytest.raises(ValueError, match=expected), attzoo.attention_maps(model):
            raise AssertionError


def test_unknown_path_raises_key_error():
    model = net()
    with attzoo.attention_maps(model) as recorded:
        with pytest.raises(KeyError, match=EAGERLY):
            recorded["1"]
        model(torch.from_numpy(image()))
    with pytest.raises(KeyError, match=r"no map of '3'; known: 1, 3\.channel, 3\.spatial"):
        recorded["3"]


@pytest.mark.skipif(BACKEND != "tensorflow", reason=f"needs Keras on TensorFlow, got {BACKEND}")
@pytest.mark.parametrize("traced_before", [False, True])
def test_traced_keras_calls_raise(traced_before):
    import tensorflow as tf

    model, x = keras_net(), np.moveaxis(image(), 1, -1)
    function = tf.function(model)
    calls = (lambda: model.predict(x, verbose=0), lambda: function(x), lambda: model(keras.Input((8, 7, 3))))
    for call in calls:
        if traced_before:
            call()
        state_before = state(model)
        with pytest.raises(ValueError, match=EAGERLY), attzoo.attention_maps(model):
            call()
        names, names_before = ([set(attributes) for attributes in parts] for parts in (state(model), state_before))
        assert names[1:] == names_before[1:]
        assert np.isfinite(call()).all() if call is calls[0] else True


def test_traced_torch_calls_raise():
    model, x = net(), torch.from_numpy(image())
    with pytest.raises(ValueError, match=EAGERLY), attzoo.attention_maps(model):
        torch.export.export(model, (x,), strict=False)   # strict export fails in torch 2.6
    with pytest.raises(ValueError, match=EAGERLY), attzoo.attention_maps(model):
        pass   # no call
    with attzoo.attention_maps(model) as recorded:
        model(x)
    assert len(recorded) == 3


@pytest.mark.parametrize("call", [
    lambda model, x: torch.vmap(model)(x[None]),
    lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
    lambda model, x: torch.func.jvp(model, (x,), (x,)),
    lambda model, x: under_fake_tensors(model, x),
], ids=["vmap", "grad", "jvp", "fake tensors"])   # fmt: skip
def test_transformed_torch_calls_raise(call):
    model, x = net().eval(), torch.from_numpy(image())
    with pytest.raises(ValueError, match=EAGERLY), attzoo.attention_maps(model):
        call(model, x)


def under_fake_tensors(model, x):
    """Call a model on a fake tensor."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x))


@pytest.mark.skipif(BACKEND != "torch", reason=f"needs Keras on torch, got {BACKEND}")
def test_maps_of_a_keras_block_in_a_torch_model():
    block = attzoo.create("spatial_attention", 3, backend="keras")
    model, x = nn.ModuleDict({"b": block}), torch.rand(1, 5, 6, 3)
    with attzoo.attention_maps(model) as maps:
        block(x)
    assert maps["b"].shape == (1, 1, 5, 6)


def test_compiled_torch_models_run_eagerly_while_recorded():
    torch.compiler.reset()
    model, x = net().eval(), torch.from_numpy(image())
    ran = []

    def backend(graph, inputs):
        return lambda *a: ran.append(1) or graph.forward(*a)

    compiled = torch.compile(model, backend=backend)
    y = compiled(x)
    assert ran == [1]
    with attzoo.attention_maps(compiled) as recorded:
        assert torch.equal(compiled(x), y)
    assert ran == [1]
    assert list(recorded) == [f"_orig_mod.{path}" for path in ("1", "3.channel", "3.spatial")]
    assert torch.equal(compiled(x), y)
    assert ran == [1, 1]   # compiled again afterwards
    first_context, second_context = attzoo.attention_maps(model), attzoo.attention_maps(model)
    first_context.__enter__()
    recorded = second_context.__enter__()
    compiled(x)
    first_context.__exit__(None, None, None)
    compiled(2 * x)
    second_context.__exit__(None, None, None)
    assert ran == [1, 1]
    np.testing.assert_array_equal(recorded["1"], model[1].attention(model[0](2 * x)).detach().numpy())
    compiled(x)
    assert ran == [1, 1, 1]
    torch.compiler.reset()
