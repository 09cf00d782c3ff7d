"""The torch U-Net with other parts of torch: copies, compilers, exporters, precision, memory."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from nets import NETS, SMALL, assert_arrays_close, build, create, image
from torch import nn
from torch.export import Dim
from torch.nn.utils import prune
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import attzoo
from attzoo.adapters import adapter
from attzoo.contract import is_older
from attzoo.ops import torch as ops
from attzoo.ops.convolution import torch as convolution
from attzoo.unet import torch as unet_torch

PRESETS = ("leejunhyun", "leejunhyun-transpose", "oktay", "monai", "keras")
every_net = pytest.mark.parametrize("name", NETS)
every_preset = pytest.mark.parametrize("name", PRESETS)


@pytest.fixture(autouse=True)
def _settings():
    """Turn off deterministic algorithms after a test."""
    yield
    torch.use_deterministic_algorithms(False)


def net(name="leejunhyun", dtype="float32", **kwargs):
    """Return a network of NETS in inference mode."""
    return build(name, "torch", dtype, **kwargs).eval()


def noise(*shape, dtype=torch.float32, seed=0):
    """Return a random tensor."""
    return torch.from_numpy(image(shape, seed)).to(dtype)


def input_of(name):
    """Return a random input of a network of NETS."""
    return noise(*NETS[name][1])


def gradients(model, x):
    """Return the gradients of a fixed weighted sum of the output by parameter."""
    model.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def buffers(model):
    """Return copies of the running statistics."""
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


# ---- copies and state --------------------------------------------------------------------------------------


@every_net
def test_state_dict_has_canonical_names(name):
    model = net(name)
    names = [key.replace(".running_", ".") for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    assert sorted(names) == sorted(model.spec.weights)


@pytest.mark.case68
@pytest.mark.case69
@pytest.mark.case83
@pytest.mark.parametrize("name", ["leejunhyun", "oktay-3d", "strided"])
def test_copies_and_loaded_state_give_the_same_outputs(name):
    model, x = net(name), input_of(name)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    new_model = create(name, "torch").eval()
    assert not torch.equal(new_model(x), expected)
    new_model.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True), strict=True)
    for copied in (new_model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.spec == model.spec
        assert not copied.training
        assert torch.equal(copied(x), expected)


def test_seed_determines_the_initialization():
    def initial_state(seed):
        torch.manual_seed(seed)
        return create("oktay", "torch", initializer="orthogonal").state_dict()

    first_state, same_seed, other_seed = initial_state(0), initial_state(0), initial_state(1)
    assert all(torch.equal(first_state[key], same_seed[key]) for key in first_state)
    assert not torch.equal(first_state["head.weight"], other_seed["head.weight"])


@pytest.mark.case71
def test_modules_have_no_hooks_and_run_those_of_users():
    model = net()
    for module in model.modules():
        assert not any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks))
    calls = []
    for i in (0, 1):
        model.skip[str(i)].register_forward_hook(lambda *_, i=i: calls.append(i))
    model(input_of("leejunhyun"))
    assert calls == [1, 0]


# ---- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.case53
@pytest.mark.case58
@every_net
def test_every_parameter_has_a_gradient(name):
    model, x = net(name).train(), input_of(name)
    original = x.clone()
    results = gradients(model, x)
    assert torch.equal(x, original)
    assert all(torch.isfinite(g).all() for g in results.values())
    # biases before norms, weights before inactive relus
    zero_gradients = [key for key, g in results.items() if not g.any()]
    assert all(key.endswith(".bias") or ".block." in key or "skip." in key for key in zero_gradients)
    assert len(zero_gradients) < 0.2 * len(results)


@pytest.mark.parametrize("name", ["leejunhyun", "oktay", "monai", "supervised"])
@pytest.mark.parametrize("dropout", [0.0, (0.3, 0.2)])
def test_checkpointing_gives_the_same_gradients_with_less_memory(name, dropout):
    """Dropout is drawn once, and running statistics are updated once, unlike with torch's own checkpoints."""
    options = {"norm": True, "kernel_size": 3}
    plain = net(name, "float64", dropout=dropout, block="spatial_attention", block_options=options)
    x = input_of(name).double()
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    results, saved = [], []
    for model in (plain, checkpointed):
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            results.append(gradients(model.train(), x))
        saved.append(None)
    assert results[0].keys() == results[1].keys()
    for expected, actual in (results, (buffers(plain), buffers(checkpointed))):
        for key, tensor in expected.items():
            assert_close(actual[key], tensor, rtol=1e-10, atol=1e-10)
    assert all(buffers(checkpointed)[key] == 1 for key in buffers(checkpointed) if key.endswith("num_batches_tracked"))
    first_none = saved.index(None)
    assert sum(saved[first_none + 1 : -1]) < 0.6 * sum(saved[:first_none])   # saved for the backward pass
    checkpointed.set_grad_checkpointing(False)
    assert_close(checkpointed.eval()(x), plain.eval()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.case65
@pytest.mark.parametrize("name", ["leejunhyun", "oktay", "oktay-3d", "monai"])
def test_deterministic_algorithms_give_equal_gradients(name):
    torch.use_deterministic_algorithms(True)
    model = net(name).train()
    runs = [gradients(copy.deepcopy(model), input_of(name)) for _ in range(2)]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


@pytest.mark.case65
def test_pooling_of_volumes_with_deterministic_algorithms():
    """torch's 3-D max pooling raises on CUDA with deterministic algorithms."""
    x = noise(2, 3, 5, 7, 4).double().requires_grad_()
    default_output = ops.pool(x, (2, 3, 2))
    gradient = torch.autograd.grad(default_output.square().sum(), x)[0]
    torch.use_deterministic_algorithms(True)
    deterministic_output = ops.pool(x, (2, 3, 2))
    assert torch.equal(deterministic_output, default_output)
    assert_close(torch.autograd.grad(deterministic_output.square().sum(), x)[0], gradient)


@pytest.mark.case54
@pytest.mark.case57
def test_training_works_after_inference_mode():
    """Tensors that are cached between calls may be used in training."""
    model, x = net(), noise(2, 3, 40, 36)
    with torch.inference_mode():
        expected = model(x)
    assert_close(model(x).detach(), expected)
    assert all(torch.isfinite(g).all() for g in gradients(model.train(), x).values())


# ---- nearest upsampling with its convolution ---------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_nearest_upsampling_merged_with_its_convolution(dims, kernel, monkeypatch):
    """Large and small inputs have different implementations, with the same outputs and gradients."""
    strides = ((2, 3, 1)[:dims],)
    settings = {"spatial_dims": dims, "channels": (3, 4), "strides": strides, "kernel_size": kernel}
    model = net("plain", "float64", **settings).train()
    x = noise(2, 3, *(7, 6, 5)[:dims], dtype=torch.float64)
    results = []
    for min_elements in (10**9, 0):
        monkeypatch.setattr(convolution, "FEW", min_elements)
        copied = copy.deepcopy(model)
        results.append(gradients(copied, x) | buffers(copied) | {"output": copied.eval()(x).detach()})
    for key, expected in results[0].items():
        assert_close(results[1][key], expected, rtol=0, atol=1e-10)


# ---- inference ---------------------------------------------------------------------------------------------


@every_net
def test_fold_norms_gives_the_same_outputs(name):
    model = net(name, "float64")
    x, state_before = input_of(name).double(), copy.deepcopy(model.state_dict())
    expected = model(x)
    folded = model.fold_norms()
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    norms = nn.modules.batchnorm._BatchNorm
    assert not any(isinstance(module, norms) for module in folded.modules())
    assert_close(folded(x), expected, rtol=0, atol=1e-11)
    for size in (1, 8, 20):   # 20 x 20 pixels have the implementation for large inputs
        resized = noise(1, 3, *(size,) * (x.ndim - 2), dtype=torch.float64)
        assert_close(folded(resized), model(resized), rtol=0, atol=1e-11)
    assert all(torch.equal(tensor, state_before[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(model(x), expected)


@every_preset
def test_folded_network_is_not_read_saved_or_converted(name, tmp_path):
    model = net(name)
    folded = model.fold_norms()
    for function in (
        lambda: attzoo.weights(folded),
        lambda: attzoo.convert(folded, backend="keras"),
        lambda: attzoo.save(folded, tmp_path / "net.safetensors"),
    ):
        with pytest.raises(ValueError, match="got the copy that fold_norms"):
            function()
    assert not list(tmp_path.iterdir())


class NormFirst(unet_torch.SpecModule):
    """A third-party block whose norm precedes the convolution of the same name."""

    def __init__(self, channels=4):
        super().__init__(attzoo.get("eca", backend="numpy")(channels))
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(self.norm(x))


def test_fold_norms_does_not_change_third_party_blocks():
    model = net()
    model.encoder[0].block = NormFirst().eval()
    model.encoder[0].block.norm.running_mean.normal_()
    x = input_of("leejunhyun")
    assert_close(model.fold_norms()(x), model(x), rtol=1e-4, atol=1e-5)


class NormAct(nn.BatchNorm2d):
    """Like timm's: a batch norm followed by an activation."""

    def forward(self, x):
        return super().forward(x).sigmoid()


class Standardized(nn.Conv2d):
    """A convolution whose weights are standardized at every call."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / w.std((1, 2, 3), keepdim=True), self.bias)


def remove_running_statistics(model):
    """Remove the running statistics of a norm."""
    norm = model.encoder[0].norm1
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


NOT_FOLDED = {   # changes of layers that `fold_norms` must keep
    "a norm of a subclass": lambda model: setattr(model.encoder[0], "norm1", NormAct(4)),
    "a convolution of a subclass": lambda m: setattr(m.encoder[0], "conv2", Standardized(4, 4, 3, padding=1)),
    "a forward of an instance": lambda m: setattr(m.encoder[0].norm1, "forward", torch.tanh),
    "a norm without running statistics": remove_running_statistics,
    "weight norm": lambda m: nn.utils.parametrizations.weight_norm(m.encoder[0].conv1),
    "weight norm after resampling": lambda m: nn.utils.parametrizations.weight_norm(m.up[0].conv),
    "a hook that doubles": lambda m: m.encoder[0].conv1.register_forward_hook(lambda layer, x, y: 2 * y),
}


@pytest.mark.parametrize("case", NOT_FOLDED)
def test_fold_norms_keeps_layers_with_another_computation(case):
    model = unet_torch.UNet(3, 2, (4, 6))
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) * 0.2 + 0.1
    NOT_FOLDED[case](model)
    x = noise(1, 3, 20, 18)
    assert_close(model.eval().fold_norms()(x), model(x), rtol=1e-4, atol=1e-5)


def test_fold_norms_of_a_pruned_network_raises():
    model = unet_torch.UNet(3, 2, (4, 6)).eval()
    prune.l1_unstructured(model.up[0].conv, "weight", 0.5)
    with pytest.raises(ValueError, match=r"expected parameters as weights, got .*: .*prune\.remove"):
        model.fold_norms()
    prune.remove(model.up[0].conv, "weight")
    x = noise(1, 3, 20, 18)
    assert_close(model.fold_norms()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.case50
def test_channels_last_input_gives_channels_last_output():
    model, x = net("oktay"), noise(2, 3, 12, 16)
    expected = model(x)
    channels_last_model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    y = channels_last_model(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert model.fold_norms()(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.case37
@pytest.mark.case38
@every_preset
def test_autocast_gives_bfloat16_outputs_and_float32_gradients(name):
    model, x = net(name), input_of(name)
    with torch.no_grad():
        expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        results = gradients(copy.deepcopy(model).train(), x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).abs().max() < 0.15 * expected.abs().max()
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in results.values())


@pytest.mark.case37
@every_preset
def test_bfloat16_network_is_close_to_float32(name):
    model, x = net(name), input_of(name)
    y = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - model(x)).abs().max() < 0.15 * model(x).abs().max()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.float64), "expected the block's dtype, torch.float32, got torch.float64"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "expected a floating-point input, got torch.int64"),
        (np.zeros((1, 3, 4, 4), np.float32), "expected a torch.Tensor, got ndarray"),
    ],
)
def test_refuses_invalid_inputs(value, message):
    with pytest.raises(TypeError, match=message):
        net()(value)


# ---- compilers and exporters -------------------------------------------------------------------------------


@pytest.fixture
def _clean():
    """Free compiled code after the test."""
    yield
    torch.compiler.reset()


@pytest.mark.case73
@pytest.mark.usefixtures("_clean")
def test_compile_with_dynamic_sizes():
    """In one graph, at odd and even sizes."""
    model = net("leejunhyun", channels=(4, 6))
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager", dynamic=True)
    for shape in ((2, 3, 9, 7), (3, 3, 8, 12), (1, 3, 1, 5)):
        assert_close(compiled(noise(*shape)), model(noise(*shape)))


@pytest.mark.usefixtures("_clean")
def test_compiled_checkpointing_updates_statistics_once():
    model = net("plain", "float64", channels=(2, 3), kernel_size=3)
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing()
    x = noise(2, 3, 5, 6, dtype=torch.float64)
    results = gradients(torch.compile(checkpointed.train(), fullgraph=True, backend="aot_eager"), x)
    for key, expected in gradients(model.train(), x).items():
        assert_close(results[f"_orig_mod.{key}"], expected, rtol=1e-10, atol=1e-10)
    for key, expected in buffers(model).items():
        assert_close(buffers(checkpointed)[key], expected, rtol=1e-10, atol=1e-10)


EXPORTED = {   # network -> size of the export, and sizes of calls
    "leejunhyun": ((16, 12), ((9, 7), (5, 13), (8, 16))),
    "oktay": ((16, 16), ((9, 11), (7, 30), (12, 8))),
    "monai": ((9, 7), ((16, 16), (5, 13))),
    "supervised": ((8, 8), ((11, 9), (6, 16))),
    "volume": ((5, 7, 9), ((3, 8, 8), (4, 6, 17))),
    "sequence": ((16,), ((9,), (13,))),
}
THREE_LEVELS = ("leejunhyun", "volume")   # the others have two, to save time


@pytest.mark.case72
@pytest.mark.parametrize("name", EXPORTED)
def test_export_with_dynamic_sizes(name):
    """The program gives the same outputs at odd and even sizes."""
    (size, other_sizes), model = EXPORTED[name], net(name, channels=(4, 6, 8) if name in THREE_LEVELS else (4, 6))
    dynamic = ({axis: Dim.DYNAMIC for axis in range(2 + len(size)) if axis != 1},)
    program = torch.export.export(model, (noise(2, 3, *size),), dynamic_shapes=dynamic).module()
    for batch, call_size in enumerate((size, *other_sizes), start=1):
        x = noise(batch, 3, *call_size)
        assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.case28
def test_exported_program_refuses_sizes_with_a_level_of_one_pixel():
    """torch.export specializes on sizes of 1, so other results would be wrong."""
    if is_older(torch.__version__, "2.7"):
        pytest.skip("programs exported by torch 2.6 check only the bounds of Dim")
    model = net()
    program = torch.export.export(
        model, (noise(2, 3, 9, 9),), dynamic_shapes=({2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    ).module()
    with pytest.raises(AssertionError, match="Guard failed"):
        program(noise(2, 3, 3, 3))
    assert model(noise(2, 3, 3, 3)).shape == (2, 2, 3, 3)


# ---- cost and training -------------------------------------------------------------------------------------


@every_net
def test_macs_equal_those_that_torch_counts(name):
    """Without merged upsampling. A multiply-add is two operations."""
    model, x = net(name), input_of(name)
    min_elements, unet_torch.ops.FEW = unet_torch.ops.FEW, 10**9
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
    finally:
        unet_torch.ops.FEW = min_elements
    assert model.spec.macs(x.shape) == counter.get_total_flops() // 2


def test_training_reduces_the_loss():
    torch.manual_seed(0)
    model = attzoo.create("unet", backend="torch", **SMALL | {"out_channels": 1, "variant": "leejunhyun"}).train()
    x = noise(4, 3, 15, 10)
    target = (x.sum(1, keepdim=True) > 0).float()
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.02), []
    for _ in range(30):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_attention_maps_do_not_change_the_network():
    model, x = net(), input_of("leejunhyun")
    with attzoo.attention_maps(model) as maps:
        y = model(x)
    assert list(maps) == ["skip.1", "skip.0"]
    assert torch.equal(model(x), y)
    assert_arrays_close(adapter("torch").forward(model, [x.numpy()], training=False), y.detach().numpy())


def test_old_name_of_fold_norms_warns():
    net = attzoo.create("unet", 1, 2, (2, 4), backend="torch").eval()
    with pytest.warns(DeprecationWarning, match=r"UNet\.fuse is deprecated .*: use UNet\.fold_norms"):
        assert torch.equal(net.fuse()(x := torch.randn(1, 1, 8, 8)), net.fold_norms()(x))
