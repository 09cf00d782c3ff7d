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
from attzoo.ops.keras import keras

every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
BACKEND = keras.backend.backend()
NAME = "skip" if BACKEND == "torch" else "skip.0"   # a dot is no letter of a name there
EAGERLY = "called eagerly, model\\(x\\)"


class Holder(nn.Module):
    """A model of somebody else's, with a block deep in it."""

    def __init__(self, block):
        super().__init__()
        self.layer = nn.ModuleList([nn.Identity(), nn.ModuleDict({"attention": block})])

    def forward(self, *inputs):
        return self.layer[1]["attention"](*inputs)


class Deaf(nn.Module):
    """A block of somebody else's, whose attention is a module of its own, and who counts what is asked of it."""

    def __init__(self):
        super().__init__()
        self.spec = attzoo.get("se", backend="numpy")(3)
        self.attention = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.attention(x)


def net(**kwargs):
    """A plain torch net with two blocks."""
    torch.manual_seed(0)
    se = attzoo.create("se", 4, backend="torch", reduction=2)
    cbam = attzoo.create("cbam", 4, backend="torch", reduction=2, kernel_size=3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), se, nn.Conv2d(4, 4, 1), cbam)


def keras_net(layout="channels_last"):
    space = (3, 8, 7) if layout == "channels_first" else (8, 7, 3)
    inputs = keras.Input(space)
    h = attzoo.create("spatial_attention", 3, backend="keras", kernel_size=3, data_format=layout, name="look")(inputs)
    return keras.Model(inputs, attzoo.create("eca", 3, backend="keras", data_format=layout, name="weigh")(h))


def image(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 3, 8, 7)).astype(np.float32)


def functional(block, shapes, layout):
    """A functional Keras model around a block, for inputs of these shapes, channels first."""
    known = [shape[1:] if layout == "channels_first" else (*shape[2:], shape[1]) for shape in shapes]
    inputs = [keras.Input(shape) for shape in known]
    return keras.Model(inputs, block(*inputs))


def state(model):
    """What the instances of a model hold, by identity."""
    parts = model._flatten_layers() if isinstance(model, keras.Layer) else model.modules()
    return [
        {name: (id(value), len(value) if isinstance(value, dict) else None) for name, value in vars(part).items()}
        for part in parts
    ]


def expected(block, inputs):
    """Maps by path within a block: the parts' and their product, or its own."""
    if not hasattr(block, "channel"):
        return {"": adapter(backend_of(block)).attention(block, inputs)}
    to = adapter(backend_of(block))
    channel = to.attention(block.channel, inputs)
    spatial = to.attention(block.spatial, [inputs[0] * channel])
    np.testing.assert_allclose(channel * spatial, to.attention(block, inputs), rtol=1e-6)
    return {".channel": channel, ".spatial": spatial}


# ---- what is heard ---------------------------------------------------------------------------------


@every_sample
def test_torch_models_tell_what_every_kind_of_block_attends_to(sample):
    torch.manual_seed(0)
    block, x = sample.create("torch").eval(), [a.astype(np.float32) for a in sample.arrays()]
    model, tensors = Holder(block), [torch.from_numpy(a) for a in x]
    before, there = model(*tensors), state(model)
    with attzoo.attention_maps(model) as seen:
        assert torch.equal(model(*tensors), before)
    assert state(model) == there
    wanted = {f"layer.1.attention{path}": a for path, a in expected(block, x).items()}
    assert list(seen) == list(wanted)
    for path, a in wanted.items():
        assert seen[path].dtype == np.float32
        np.testing.assert_array_equal(seen[path], a)


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@every_sample
def test_functional_keras_models_too_in_either_layout(sample, layout):
    keras.utils.set_random_seed(0)
    block = sample.create("keras", data_format=layout, name=NAME)
    x = [a.astype(np.float32) for a in sample.arrays()]
    model = functional(block, [a.shape for a in x], layout)
    tensors = [a if layout == "channels_first" else np.moveaxis(a, 1, -1) for a in x]
    before, there = keras.ops.convert_to_numpy(model(tensors)), state(model)
    with attzoo.attention_maps(model) as seen:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(tensors)), before)
    assert state(model) == there
    wanted = {f"{block.name}{path}": a for path, a in expected(block, x).items()}
    assert list(seen) == list(wanted)
    for path, a in wanted.items():
        np.testing.assert_allclose(seen[path], a, rtol=1e-6)


@pytest.mark.parametrize("block", [None, "cbam"])
def test_a_unet_tells_the_same_in_both_frameworks(block):
    torch.manual_seed(0)
    options = {"block": block, "block_options": {"reduction": 2, "kernel_size": 3}} if block else {}
    first = attzoo.create("unet", 3, 2, (4, 4, 4), backend="torch", **options)
    other = attzoo.convert(first, backend="keras")
    seen = {}
    for model in (first, other):
        backend = backend_of(model)
        with attzoo.attention_maps(model) as seen[backend]:
            adapter(backend).forward(model, [image()], training=False)
    gates = {"skip.0": (2, 1, 8, 7), "skip.1": (2, 1, 4, 4)}
    assert {path: a.shape for path, a in seen["torch"].items() if path.startswith("skip")} == gates
    assert len(seen["torch"]) == (2 if block is None else 2 + 5 * 2)
    assert "encoder.1.block.channel" in seen["torch"] or block is None
    assert list(seen["torch"]) == list(seen["keras"])
    for path, a in seen["torch"].items():
        np.testing.assert_allclose(seen["keras"][path], a, atol=1e-5)


def test_coefficients_are_computed_once_and_gradients_stay(monkeypatch):
    model, x = net(), torch.from_numpy(image()).requires_grad_()
    wanted = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    counts, se = [], type(model[1])
    compute = se.attention
    monkeypatch.setattr(se, "attention", lambda self, x: counts.append(1) or compute(self, x))
    with attzoo.attention_maps(model) as seen:
        y = model(x)
    assert counts == [1]
    for got, want in zip(torch.autograd.grad(y.square().sum(), [x, *model.parameters()]), wanted, strict=True):
        assert torch.equal(got, want)
    seen["1"][:] = 7   # a copy: nothing of the model's is seen through it
    with attzoo.attention_maps(model) as again:
        assert torch.equal(model(x), y)
    assert again["1"].max() < 1


def test_the_latest_call_wins_and_of_a_shared_block_its_last_place():
    se, x = attzoo.create("se", 4, backend="torch", reduction=2), [torch.rand(n, 4, 5, 5) for n in (1, 2)]
    model = nn.Sequential(se, nn.Conv2d(4, 4, 1), se)
    with attzoo.attention_maps(model) as seen:
        model(x[0])
        assert seen["0"].shape == (1, 4, 1, 1)
        model(x[1])
    assert list(seen) == ["0"]
    wanted = se.attention(model[:2](x[1])).detach().numpy()
    np.testing.assert_array_equal(seen["0"], wanted)


def test_a_keras_block_in_two_models_has_its_first_path():
    inner = keras_net()
    inputs = keras.Input((8, 7, 3))
    model = keras.Model(inputs, keras.Sequential([inner], name="again")(inner(inputs)))
    with attzoo.attention_maps(model) as seen:
        model(np.moveaxis(image(), 1, -1))
    assert list(seen) == [f"{inner.name}.look", f"{inner.name}.weigh"]
    x = np.moveaxis(keras.ops.convert_to_numpy(inner(np.moveaxis(image(), 1, -1))), -1, 1)
    wanted = adapter("keras").attention(inner.get_layer("look"), [x])
    np.testing.assert_allclose(seen[f"{inner.name}.look"], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.float16, np.float32), (torch.bfloat16, np.float32), (torch.float64, np.float64)],
    ids=str,
)
def test_arrays_are_of_single_precision_at_least(dtype, wanted):
    model, x = net().to(dtype), torch.from_numpy(image()).to(dtype)
    with attzoo.attention_maps(model) as seen:
        model(x)
    assert {a.dtype for a in seen.values()} == {np.dtype(wanted)}
    np.testing.assert_array_equal(seen["1"], model[1].attention(model[0](x)).detach().to(torch.float64).numpy())


def test_autocast_and_data_parallel():
    model = nn.DataParallel(net())
    with attzoo.attention_maps(model) as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.from_numpy(image()))
    assert list(seen) == ["module.1", "module.3.channel", "module.3.spatial"]
    assert {a.dtype for a in seen.values()} == {np.dtype(np.float32)}
    model.device_ids = [0, 1]   # as where there are two GPUs
    with pytest.raises(ValueError, match="on one device, got DataParallel on 2"), attzoo.attention_maps(model):
        raise AssertionError


def test_keras_models_that_are_subclassed_nested_or_not_built_yet():
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
    with attzoo.attention_maps(model) as seen:
        model(x)
    name = model.layers[0].name
    assert sorted(seen) == [f"{name}.{path}" for path in ("inner.look", "inner.weigh", "same", "same_1")]
    assert seen[f"{name}.inner.look"].shape == (2, 1, 8, 7)
    assert seen[f"{name}.same"].shape == (2, 3, 1, 1)


def test_a_block_alone_and_one_with_an_attention_of_its_own():
    se = attzoo.create("se", 3, backend="torch")
    with attzoo.attention_maps(se) as seen:
        se(torch.from_numpy(image()))
    assert list(seen) == [""]
    model = nn.Sequential(Deaf())
    with attzoo.attention_maps(model) as seen:
        model(torch.from_numpy(image()))
    assert seen["0"].shape == (2, 1, 8, 7)
    assert isinstance(model[0].attention, nn.Sequential)
    mine = model[0].attention
    vars(model[0])["attention"] = mine.forward   # and one who has it on the instance, as a Keras layer's parts are
    with attzoo.attention_maps(model) as seen:
        model(torch.from_numpy(image()))
    assert vars(model[0])["attention"] == mine.forward


def test_an_attention_on_a_keras_instance_is_put_back():
    model = keras_net()
    mine = model.layers[1].attention
    vars(model.layers[1])["attention"] = mine
    with attzoo.attention_maps(model) as seen:
        model(np.moveaxis(image(), 1, -1))
    assert vars(model.layers[1])["attention"] is mine
    assert "look" in seen


# ---- nothing is left behind ------------------------------------------------------------------------


def test_errors_pass_and_nothing_stays():
    model = net()
    model(torch.from_numpy(image()))
    there = state(model)
    with pytest.raises(ZeroDivisionError), attzoo.attention_maps(model):
        1 / len(model(torch.from_numpy(image()))[:0])
    assert state(model) == there
    with pytest.raises(RuntimeError, match="channels"), attzoo.attention_maps(model):
        model(torch.rand(1, 5, 8, 8))
    assert state(model) == there
    with pytest.raises(ZeroDivisionError), attzoo.attention_maps(model):   # before anything was heard
        raise ZeroDivisionError
    assert state(model) == there


@pytest.mark.parametrize("before", [None, "an attention of its own"])
def test_an_attention_that_is_set_inside_stays(before):
    block, x = attzoo.create("se", 3, backend="torch"), torch.from_numpy(image())
    if before:
        block.attention = lambda x: x[:, :, :1, :1]
    with attzoo.attention_maps(block):
        block(x)
        block.attention = mine = lambda x: torch.ones(len(x), 3, 1, 1)
        block(x)
    assert vars(block)["attention"] is mine
    assert "__reduce_ex__" not in vars(block)
    torch.testing.assert_close(block(x), x)


def test_listeners_nest_and_may_leave_in_any_order():
    model, x = net(), torch.from_numpy(image())
    model(x)
    there = state(model)
    with attzoo.attention_maps(model) as outer:
        with attzoo.attention_maps(model[1]) as inner:
            model(x)
        with attzoo.attention_maps(model):
            model(2 * x)
    np.testing.assert_array_equal(inner[""], model[1].attention(model[0](x)).detach().numpy())
    np.testing.assert_array_equal(outer["1"], model[1].attention(model[0](2 * x)).detach().numpy())
    assert state(model) == there
    one, two = attzoo.attention_maps(model), attzoo.attention_maps(model)
    first, second = one.__enter__(), two.__enter__()
    model(x)
    one.__exit__(None, None, None)
    model(2 * x)
    two.__exit__(None, None, None)
    np.testing.assert_array_equal(first["1"], inner[""])
    np.testing.assert_array_equal(second["1"], outer["1"])
    assert state(model) == there


# ---- threads and copies ----------------------------------------------------------------------------


def models():
    """A net in each framework, and how it is called."""
    torch_net, other = net(), keras_net()
    return [
        (torch_net, lambda model, x: model(torch.from_numpy(x))),
        (other, lambda model, x: model(np.moveaxis(x, 1, -1))),
    ]


every_framework = pytest.mark.parametrize("framework", [0, 1], ids=["torch", "keras"])


def record(model, call, x):
    with attzoo.attention_maps(model) as seen:
        call(model, x)
    return dict(seen)


def assert_equal(got, wanted):
    assert list(got) == list(wanted)
    for path, array in wanted.items():
        np.testing.assert_array_equal(got[path], array)


@every_framework
def test_calls_of_another_thread_are_not_recorded(framework):
    model, call = models()[framework]
    wanted = record(model, call, image())
    with attzoo.attention_maps(model) as seen:
        in_thread(lambda: call(model, image(1)))
        assert not seen
        call(model, image())
        in_thread(lambda: call(model, image(1)))
    assert_equal(seen, wanted)
    with pytest.raises(ValueError, match="calls of other threads are not recorded"), attzoo.attention_maps(model):
        in_thread(lambda: call(model, image()))


@every_framework
def test_eight_threads_record_each_their_own_calls(framework):
    model, call = models()[framework]
    there, seen, barrier = state(model), {}, threading.Barrier(8)

    def work(i):
        with attzoo.attention_maps(model) as seen[i]:
            barrier.wait(20)
            for _ in range(3):
                call(model, image(i))
            barrier.wait(20)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(each) for each in state(model)] == [set(each) for each in there]
    for i in range(8):
        assert_equal(seen[i], record(model, call, image(i)))


@every_framework
def test_a_copy_of_the_context_is_recorded_until_the_end(framework):
    model, call = models()[framework]
    wanted = record(model, call, image())
    with attzoo.attention_maps(model) as seen:
        context = copy_context()
        in_thread(lambda: context.run(call, model, image()))
        assert_equal(seen, wanted)
    in_thread(lambda: context.run(call, model, image(1)))
    context.run(call, model, image(1))
    with attzoo.attention_maps(model):   # whose taps the old context meets
        call(model, image(1))
        context.run(call, model, image(1))
    assert_equal(seen, wanted)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def clone(model):
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


COPIES = {   # framework, and what copies a model
    "deepcopy": (0, copy.deepcopy),
    "pickle": (0, lambda model: pickle.loads(pickle.dumps(model))),
    "torch.save": (0, saved),
    "copy": (0, lambda model: nn.Sequential(model[0], copy.copy(model[1]), model[2], copy.deepcopy(model[3]))),
    "averaged": (0, lambda model: torch.optim.swa_utils.AveragedModel(model).module),
    "deepcopy of Keras's": (1, copy.deepcopy),
    "clone_model": (1, clone),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_made_inside_are_not_recorded(kind):
    framework, make = COPIES[kind]
    model, call = models()[framework]
    wanted, y = record(model, call, image()), call(model, image())
    with attzoo.attention_maps(model) as seen:
        call(model, image())
        twin = make(model)
        call(twin, image(1))
        assert_equal(seen, wanted)
    call(twin, image(1))
    assert_equal(seen, wanted)
    assert np.array_equal(*(z.detach() if framework == 0 else z for z in (call(twin, image()), y)))
    parts = twin._flatten_layers() if framework else twin.modules()
    assert not any({"attention", "__reduce_ex__"} & set(vars(part)) for part in parts)
    assert_equal(record(twin, call, image()), wanted)


def test_a_copy_keeps_what_its_owner_had_put_there():
    class Mine:
        def __init__(self, block):
            self.block = block

        def __call__(self, x):
            return type(self.block).attention(self.block, x) * 0

    model = net()
    vars(model[1])["attention"] = Mine(model[1])
    with attzoo.attention_maps(model) as seen:
        twin = copy.deepcopy(model)
        model(torch.from_numpy(image()))
    assert isinstance(vars(twin[1])["attention"], Mine)
    assert vars(twin[1])["attention"].block is twin[1]
    assert not twin(torch.from_numpy(image())).isnan().any()
    assert not seen["1"].any()


class Copied(Deaf):
    """A block that copies itself."""

    def __deepcopy__(self, memo):
        twin = type(self)()
        twin.__dict__.update(copy.deepcopy(vars(self), memo | {id(self): twin}))
        return twin


def test_a_copy_by_its_own_rule_is_not_recorded():
    model = nn.Sequential(Copied())
    x = [torch.from_numpy(image(i)) for i in (0, 1)]
    with attzoo.attention_maps(model) as seen:
        model(x[0])
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin[0].attention.attention[0].bias += 1
        twin(x[1])
    np.testing.assert_array_equal(seen["0"], model[0].attention(x[0]).detach())
    assert not torch.equal(twin(x[0]), model(x[0]))
    with attzoo.attention_maps(twin) as again:
        twin(x[0])
    assert not np.array_equal(again["0"], seen["0"])


@pytest.mark.parametrize("name", ["cbam", "attention_gate"])
def test_another_thread_keeps_the_quick_form(name):
    """What passes are taken is not changed by those who record elsewhere."""
    from attzoo.blocks.attention_gate import cpu as gate_cpu
    from attzoo.fast import cpu

    options = {"gating_channels": 4} if name == "attention_gate" else {"kernel_size": 3}
    block = attzoo.create(name, 4, backend="torch", **options).eval()
    xs = [torch.rand(1, 4, 600, 600)] * len(block.spec.inputs)
    module, function = (gate_cpu, "gated") if name == "attention_gate" else (cpu, "scale")
    calls, real = [], getattr(module, function)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), attzoo.attention_maps(block):
        patch.setattr(module, function, lambda *args: calls.append(1) or real(*args))
        block(*xs)
        assert not calls

        def work():
            with torch.no_grad():
                return block(*xs)

        in_thread(work)
        assert calls == [1]


# ---- what cannot be heard --------------------------------------------------------------------------


def test_refusals():
    with pytest.raises(TypeError, match="expected a model of torch or Keras, got str"), attzoo.attention_maps("net"):
        raise AssertionError
    for model in (nn.Sequential(nn.Linear(2, 2)), keras.Sequential([keras.layers.Dense(2)])):
        wanted = "expected a model that holds attention blocks, got a Sequential without any"
        with pytest.raises(ValueError, match=wanted), attzoo.attention_maps(model):
            raise AssertionError


def test_a_path_that_is_not_there():
    model = net()
    with attzoo.attention_maps(model) as seen:
        with pytest.raises(KeyError, match=EAGERLY):
            seen["1"]
        model(torch.from_numpy(image()))
    with pytest.raises(KeyError, match=r"no map of '3'; known: 1, 3\.channel, 3\.spatial"):
        seen["3"]


@pytest.mark.skipif(BACKEND != "tensorflow", reason=f"TensorFlow's own, and this is {BACKEND}")
@pytest.mark.parametrize("traced_before", [False, True])
def test_traced_keras_calls_are_one_clear_error(traced_before):
    import tensorflow as tf

    model, x = keras_net(), np.moveaxis(image(), 1, -1)
    function = tf.function(model)
    calls = (lambda: model.predict(x, verbose=0), lambda: function(x), lambda: model(keras.Input((8, 7, 3))))
    for call in calls:
        if traced_before:
            call()
        there = state(model)
        with pytest.raises(ValueError, match=EAGERLY), attzoo.attention_maps(model):
            call()
        assert [set(each) for each in state(model)][1:] == [set(each) for each in there][1:]
        assert np.isfinite(call()).all() if call is calls[0] else True


def test_traced_torch_calls_are_one_clear_error():
    model, x = net(), torch.from_numpy(image())
    with pytest.raises(ValueError, match=EAGERLY), attzoo.attention_maps(model):
        torch.export.export(model, (x,), strict=False)   # the default but in torch 2.6, whose strict one fails itself
    with pytest.raises(ValueError, match=EAGERLY), attzoo.attention_maps(model):
        pass   # nothing was called at all
    with attzoo.attention_maps(model) as seen:
        model(x)
    assert len(seen) == 3


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")   # torch's own use, by jvp
@pytest.mark.parametrize("call", [
    lambda model, x: torch.vmap(model)(x[None]),
    lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
    lambda model, x: torch.func.jvp(model, (x,), (x,)),
    lambda model, x: under_fake_tensors(model, x),
], ids=["vmap", "grad", "jvp", "fake tensors"])   # fmt: skip
def test_transformed_torch_calls_are_one_clear_error(call):
    model, x = net().eval(), torch.from_numpy(image())
    with pytest.raises(ValueError, match=EAGERLY), attzoo.attention_maps(model):
        call(model, x)


def under_fake_tensors(model, x):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x))


@pytest.mark.skipif(BACKEND != "torch", reason=f"Keras on torch, and this is {BACKEND}")
def test_a_torch_model_that_holds_a_block_of_keras():
    block = attzoo.create("spatial_attention", 3, backend="keras")
    model, x = nn.ModuleDict({"b": block}), torch.rand(1, 5, 6, 3)
    with attzoo.attention_maps(model) as maps:
        block(x)
    assert maps["b"].shape == (1, 1, 5, 6)


def test_compiled_torch_models_run_eagerly_inside():
    torch.compiler.reset()
    model, x = net().eval(), torch.from_numpy(image())
    ran = []

    def backend(graph, inputs):
        return lambda *a: ran.append(1) or graph.forward(*a)

    compiled = torch.compile(model, backend=backend)
    y = compiled(x)
    assert ran == [1]
    with attzoo.attention_maps(compiled) as seen:
        assert torch.equal(compiled(x), y)
    assert ran == [1]
    assert list(seen) == [f"_orig_mod.{path}" for path in ("1", "3.channel", "3.spatial")]
    assert torch.equal(compiled(x), y)
    assert ran == [1, 1]   # and compiled again outside
    one, two = attzoo.attention_maps(model), attzoo.attention_maps(model)
    one.__enter__()
    seen = two.__enter__()
    compiled(x)
    one.__exit__(None, None, None)
    compiled(2 * x)
    two.__exit__(None, None, None)
    assert ran == [1, 1]
    np.testing.assert_array_equal(seen["1"], model[1].attention(model[0](2 * x)).detach().numpy())
    compiled(x)
    assert ran == [1, 1, 1]
    torch.compiler.reset()
