"""The torch U-Net lives with the rest of torch: copies, compilers, exporters, precision, memory."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from nets import NETS, SMALL, build, close, create, image
from torch import nn
from torch.export import Dim
from torch.nn.utils import prune
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import attzoo
from attzoo.adapters import adapter
from attzoo.contract import older
from attzoo.ops import torch as ops
from attzoo.unet import torch as body

PRESETS = ("leejunhyun", "leejunhyun-transpose", "oktay", "monai", "keras")
every_net = pytest.mark.parametrize("name", NETS)
every_preset = pytest.mark.parametrize("name", PRESETS)


@pytest.fixture(autouse=True)
def _settings():
    yield
    torch.use_deterministic_algorithms(False)


def net(name="leejunhyun", dtype="float32", **kwargs):
    return build(name, "torch", dtype, **kwargs).eval()


def noise(*shape, dtype=torch.float32, seed=0):
    return torch.from_numpy(image(shape, seed)).to(dtype)


def picture(name):
    return noise(*NETS[name][1])


def slopes(model, x):
    """Gradients of a fixed sum of the output, by parameter."""
    model.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def moved(model):
    """What is remembered of batches."""
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


# ---- copies and state --------------------------------------------------------------------------------------


@every_net
def test_state_dict_speaks_canonical_names(name):
    model = net(name)
    names = [key.replace(".running_", ".") for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    assert sorted(names) == sorted(model.spec.weights)


@pytest.mark.case68
@pytest.mark.case69
@pytest.mark.case83
@pytest.mark.parametrize("name", ["leejunhyun", "oktay-3d", "strided"])
def test_copies(name):
    model, x = net(name), picture(name)
    wanted = model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    fresh = create(name, "torch").eval()
    assert not torch.equal(fresh(x), wanted)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True), strict=True)
    for twin in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.spec == model.spec
        assert not twin.training
        assert torch.equal(twin(x), wanted)


def test_a_seed_fixes_the_start():
    def start(seed):
        torch.manual_seed(seed)
        return create("oktay", "torch", initializer="orthogonal").state_dict()

    one, same, other = start(0), start(0), start(1)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.case71
def test_no_hook_is_left_or_needed():
    model = net()
    for module in model.modules():
        assert not any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks))
    seen = []
    for i in (0, 1):
        model.skip[str(i)].register_forward_hook(lambda *_, i=i: seen.append(i))
    model(picture("leejunhyun"))
    assert seen == [1, 0]


# ---- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.case53
@pytest.mark.case58
@every_net
def test_every_parameter_gets_a_gradient(name):
    model, x = net(name).train(), picture(name)
    before = x.clone()
    found = slopes(model, x)
    assert torch.equal(x, before)
    assert all(torch.isfinite(g).all() for g in found.values())
    idle = [key for key, g in found.items() if not g.any()]   # a bias before a norm; behind a relu that passes nothing
    assert all(key.endswith(".bias") or ".block." in key or "skip." in key for key in idle)
    assert len(idle) < 0.2 * len(found)


@pytest.mark.parametrize("name", ["leejunhyun", "oktay", "monai", "supervised"])
@pytest.mark.parametrize("dropout", [0.0, (0.3, 0.2)])
def test_checkpointing(name, dropout):
    """The same slopes, dropout drawn once, running statistics moved once: torch's own would move them again."""
    options = {"norm": True, "kernel_size": 3}
    plain = net(name, "float64", dropout=dropout, block="spatial_attention", block_options=options)
    x = picture(name).double()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    found, kept = [], []
    for model in (plain, saving):
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            found.append(slopes(model.train(), x))
        kept.append(None)
    assert found[0].keys() == found[1].keys()
    for wanted, got in (found, (moved(plain), moved(saving))):
        for key, tensor in wanted.items():
            assert_close(got[key], tensor, rtol=1e-10, atol=1e-10)
    assert all(moved(saving)[key] == 1 for key in moved(saving) if key.endswith("num_batches_tracked"))
    first = kept.index(None)
    assert sum(kept[first + 1 : -1]) < 0.6 * sum(kept[:first])   # what is kept for the way back
    saving.set_grad_checkpointing(False)
    assert_close(saving.eval()(x), plain.eval()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.case65
@pytest.mark.parametrize("name", ["leejunhyun", "oktay", "oktay-3d", "monai"])
def test_deterministic_algorithms(name):
    torch.use_deterministic_algorithms(True)
    model = net(name).train()
    runs = [slopes(copy.deepcopy(model), picture(name)) for _ in range(2)]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


@pytest.mark.case65
def test_volumes_are_pooled_alike_where_gradients_must_be_deterministic():
    """torch's own 3-D max-pool throws there on CUDA."""
    x = noise(2, 3, 5, 7, 4).double().requires_grad_()
    usual = ops.pool(x, (2, 3, 2))
    slope = torch.autograd.grad(usual.square().sum(), x)[0]
    torch.use_deterministic_algorithms(True)
    other = ops.pool(x, (2, 3, 2))
    assert torch.equal(other, usual)
    assert_close(torch.autograd.grad(other.square().sum(), x)[0], slope)


@pytest.mark.case54
@pytest.mark.case57
def test_inference_mode_comes_and_goes():
    """What is kept from one call to the next serves training after inference."""
    model, x = net(), noise(2, 3, 40, 36)
    with torch.inference_mode():
        wanted = model(x)
    assert_close(model(x).detach(), wanted)
    assert all(torch.isfinite(g).all() for g in slopes(model.train(), x).values())


# ---- repeating and its convolution in one ------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_repeating_in_one_with_its_convolution(dims, kernel, monkeypatch):
    """Many pixels go another way than few; both give the same, and the same slopes."""
    strides = ((2, 3, 1)[:dims],)
    settings = {"spatial_dims": dims, "channels": (3, 4), "strides": strides, "kernel_size": kernel}
    model = net("plain", "float64", **settings).train()
    x = noise(2, 3, *(7, 6, 5)[:dims], dtype=torch.float64)
    found = []
    for few in (10**9, 0):
        monkeypatch.setattr(body.ops, "FEW", few)
        twin = copy.deepcopy(model)
        found.append(slopes(twin, x) | moved(twin) | {"output": twin.eval()(x).detach()})
    for key, wanted in found[0].items():
        assert_close(found[1][key], wanted, rtol=0, atol=1e-10)


# ---- inference ---------------------------------------------------------------------------------------------


@every_net
def test_fused(name):
    model = net(name, "float64")
    x, before = picture(name).double(), copy.deepcopy(model.state_dict())
    wanted = model(x)
    folded = model.fold_norms()
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    norms = nn.modules.batchnorm._BatchNorm
    assert not any(isinstance(module, norms) for module in folded.modules())
    assert_close(folded(x), wanted, rtol=0, atol=1e-11)
    for size in (1, 8, 20):   # 20 x 20 and more goes the way of many pixels
        other = noise(1, 3, *(size,) * (x.ndim - 2), dtype=torch.float64)
        assert_close(folded(other), model(other), rtol=0, atol=1e-11)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(model(x), wanted)


@every_preset
def test_a_fused_net_cannot_travel(name, tmp_path):
    model = net(name)
    folded = model.fold_norms()
    for what in (
        lambda: attzoo.weights(folded),
        lambda: attzoo.convert(folded, backend="keras"),
        lambda: attzoo.save(folded, tmp_path / "net.safetensors"),
    ):
        with pytest.raises(ValueError, match="as it was made, got one whose norms are folded: keep the original"):
            what()
    assert not list(tmp_path.iterdir())


class NormFirst(body.SpecModule):
    """Somebody else's block, with the norm before the convolution of the same name."""

    def __init__(self, channels=4):
        super().__init__(attzoo.get("eca", backend="numpy")(channels))
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(self.norm(x))


def test_fusing_leaves_others_alone():
    model = net()
    model.encoder[0].block = NormFirst().eval()
    model.encoder[0].block.norm.running_mean.normal_()
    x = picture("leejunhyun")
    assert_close(model.fold_norms()(x), model(x), rtol=1e-4, atol=1e-5)


class NormAct(nn.BatchNorm2d):
    """As timm's: a batch norm and an activation in one."""

    def forward(self, x):
        return super().forward(x).sigmoid()


class Standardized(nn.Conv2d):
    """A convolution whose weights are standardized at every call."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / w.std((1, 2, 3), keepdim=True), self.bias)


def without_statistics(model):
    norm = model.encoder[0].norm1
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


UNUSUAL = {
    "a norm of a subclass": lambda m: setattr(m.encoder[0], "norm1", NormAct(4)),
    "a convolution of a subclass": lambda m: setattr(m.encoder[0], "conv2", Standardized(4, 4, 3, padding=1)),
    "a forward of an instance": lambda m: setattr(m.encoder[0].norm1, "forward", torch.tanh),
    "a norm without statistics": without_statistics,
    "weight norm": lambda m: nn.utils.parametrizations.weight_norm(m.encoder[0].conv1),
    "weight norm after resampling": lambda m: nn.utils.parametrizations.weight_norm(m.up[0].conv),
    "a hook that doubles": lambda m: m.encoder[0].conv1.register_forward_hook(lambda layer, x, y: 2 * y),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_what_is_not_as_usual_is_not_folded(what):
    model = body.UNet(3, 2, (4, 6))
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) * 0.2 + 0.1
    UNUSUAL[what](model)
    x = noise(1, 3, 20, 18)
    assert_close(model.eval().fold_norms()(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_pruned_net_says_what_to_do_before_it_is_folded():
    model = body.UNet(3, 2, (4, 6)).eval()
    prune.l1_unstructured(model.up[0].conv, "weight", 0.5)
    with pytest.raises(ValueError, match=r"expected weights that are parameters, got computed ones: .*prune\.remove"):
        model.fold_norms()
    prune.remove(model.up[0].conv, "weight")
    x = noise(1, 3, 20, 18)
    assert_close(model.fold_norms()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.case50
def test_channels_last():
    model, x = net("oktay"), noise(2, 3, 12, 16)
    wanted = model(x)
    laid = copy.deepcopy(model).to(memory_format=torch.channels_last)
    y = laid(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    assert model.fold_norms()(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.case37
@pytest.mark.case38
@every_preset
def test_autocast(name):
    model, x = net(name), picture(name)
    with torch.no_grad():
        wanted = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        found = slopes(copy.deepcopy(model).train(), x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - wanted).abs().max() < 0.15 * wanted.abs().max()
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in found.values())


@pytest.mark.case37
@every_preset
def test_bfloat16(name):
    model, x = net(name), picture(name)
    y = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - model(x)).abs().max() < 0.15 * model(x).abs().max()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.float64), "expected the block's dtype, torch.float32, got torch.float64"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "expected a floating-point input, got torch.int64"),
        (np.zeros((1, 3, 4, 4), np.float32), "expected a torch.Tensor, got ndarray"),
    ],
)
def test_refuses_an_input(wrong, says):
    with pytest.raises(TypeError, match=says):
        net()(wrong)


# ---- compilers and exporters -------------------------------------------------------------------------------


@pytest.fixture
def _clean():
    yield
    torch.compiler.reset()


@pytest.mark.case73
@pytest.mark.usefixtures("_clean")
def test_compile():
    """In one graph, at other sizes too, odd and even."""
    model = net("leejunhyun", channels=(4, 6))
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager", dynamic=True)
    for shape in ((2, 3, 9, 7), (3, 3, 8, 12), (1, 3, 1, 5)):
        assert_close(compiled(noise(*shape)), model(noise(*shape)))


@pytest.mark.usefixtures("_clean")
def test_compiled_checkpointing_moves_statistics_once():
    model = net("plain", "float64", channels=(2, 3), kernel_size=3)
    saving = copy.deepcopy(model)
    saving.set_grad_checkpointing()
    x = noise(2, 3, 5, 6, dtype=torch.float64)
    found = slopes(torch.compile(saving.train(), fullgraph=True, backend="aot_eager"), x)
    for key, wanted in slopes(model.train(), x).items():
        assert_close(found[f"_orig_mod.{key}"], wanted, rtol=1e-10, atol=1e-10)
    for key, wanted in moved(model).items():
        assert_close(moved(saving)[key], wanted, rtol=1e-10, atol=1e-10)


EXPORTED = {   # a net, the size that it is exported at, and others
    "leejunhyun": ((16, 12), ((9, 7), (5, 13), (8, 16))),
    "oktay": ((16, 16), ((9, 11), (7, 30), (12, 8))),
    "monai": ((9, 7), ((16, 16), (5, 13))),
    "supervised": ((8, 8), ((11, 9), (6, 16))),
    "volume": ((5, 7, 9), ((3, 8, 8), (4, 6, 17))),
    "sequence": ((16,), ((9,), (13,))),
}
TWO_LEVELS = ("monai", "supervised", "sequence")   # which is quicker


@pytest.mark.case72
@pytest.mark.parametrize("name", EXPORTED)
def test_export(name):
    """With every size open; then it is right at other sizes, odd and even, whatever it was exported at."""
    (size, others), model = EXPORTED[name], net(name, channels=(4, 6) if name in TWO_LEVELS else (4, 6, 8))
    dynamic = ({axis: Dim.DYNAMIC for axis in range(2 + len(size)) if axis != 1},)
    program = torch.export.export(model, (noise(2, 3, *size),), dynamic_shapes=dynamic).module()
    for batch, other in enumerate((size, *others), start=1):
        x = noise(batch, 3, *other)
        assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.case28
def test_an_export_refuses_sizes_it_would_be_wrong_at():
    """Torch takes a size of one for another case, so a level of one pixel is refused; never a wrong answer."""
    if older(torch.__version__, "2.7"):
        pytest.skip("an exported program of torch 2.6 checks no sizes but those of Dim's own bounds")
    model = net()
    program = torch.export.export(
        model, (noise(2, 3, 9, 9),), dynamic_shapes=({2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    ).module()
    with pytest.raises(AssertionError, match="Guard failed"):
        program(noise(2, 3, 3, 3))
    assert model(noise(2, 3, 3, 3)).shape == (2, 2, 3, 3)


# ---- what it costs -----------------------------------------------------------------------------------------


@every_net
def test_macs(name):
    """What the spec says a call costs is what torch counts, half of its operations, repeating done plainly."""
    model, x = net(name), picture(name)
    body_few, body.ops.FEW = body.ops.FEW, 10**9
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
    finally:
        body.ops.FEW = body_few
    assert model.spec.macs(x.shape) == counter.get_total_flops() // 2


def test_a_net_learns():
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


def test_maps_leave_nothing_behind():
    model, x = net(), picture("leejunhyun")
    with attzoo.attention_maps(model) as maps:
        y = model(x)
    assert list(maps) == ["skip.1", "skip.0"]
    assert torch.equal(model(x), y)
    close(adapter("torch").forward(model, [x.numpy()], training=False), y.detach().numpy())


def test_the_old_name_of_fold_norms_warns():
    net = attzoo.create("unet", 1, 2, (2, 4), backend="torch").eval()
    with pytest.warns(DeprecationWarning, match=r"UNet\.fuse is now UNet\.fold_norms"):
        assert torch.equal(net.fuse()(x := torch.randn(1, 1, 8, 8)), net.fold_norms()(x))
