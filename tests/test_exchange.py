"""Weights of other libraries: state dicts with published keys give the outputs of the published computation."""

import numpy as np
import pytest
import torch
from libraries import RNG, random_weights
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import attzoo
from attzoo import registry
from attzoo.contract import without_prefix

# ---- the published modules, by their keys and formulas ---------------------------------------------------------------


class Perceptron(nn.Module):
    """Two linear maps, or convolutions of size 1 if `conv`, with given names and an activation between them."""

    def __init__(self, names, c, r, conv=False, bias=True, act=F.relu):
        super().__init__()
        create_layer = (
            (lambda inputs, outputs: nn.Conv2d(inputs, outputs, 1, bias=bias))
            if conv
            else (lambda inputs, outputs: nn.Linear(inputs, outputs, bias=bias))
        )
        self.names, self.act = names, act
        for name, layer in zip(names, (create_layer(c, r), create_layer(r, c)), strict=True):
            parent = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(leaf, layer)

    def forward(self, x):
        first_layer, second_layer = (self.get_submodule(name) for name in self.names)
        if isinstance(first_layer, nn.Conv2d):
            return second_layer(self.act(first_layer(x[:, :, None, None])))[:, :, 0, 0]
        return second_layer(self.act(first_layer(x)))


class SE(Perceptron):
    def forward(self, x):
        return x * torch.sigmoid(super().forward(x.mean((2, 3))))[:, :, None, None]


class ChannelGate(Perceptron):
    """arXiv:1807.06521, eq. 2."""

    def forward(self, x):
        return x * torch.sigmoid(super().forward(x.mean((2, 3))) + super().forward(x.amax((2, 3))))[:, :, None, None]


class SpatialGate(nn.Module):
    """arXiv:1807.06521, eq. 3, with the maximum first and a batch norm, as in the official code."""

    def __init__(self):
        super().__init__()
        self.spatial = nn.Module()
        self.spatial.conv, self.spatial.bn = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1)

    def forward(self, x):
        planes = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial.bn(self.spatial.conv(planes)))


class OfficialCBAM(nn.Module):
    def __init__(self, c, r):
        super().__init__()
        self.ChannelGate, self.SpatialGate = ChannelGate(("mlp.1", "mlp.3"), c, r), SpatialGate()

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))


class OfficialECA(nn.Module):
    """arXiv:1910.03151, eq. 9."""

    def __init__(self, k):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(x.mean((2, 3))[:, None]))[:, 0, :, None, None]


class LeeJunHyunGate(nn.Module):
    def __init__(self, c, g, f):
        super().__init__()
        self.W_x = nn.Sequential(nn.Conv2d(c, f, 1), nn.BatchNorm2d(f))
        self.W_g = nn.Sequential(nn.Conv2d(g, f, 1), nn.BatchNorm2d(f))
        self.psi = nn.Sequential(nn.Conv2d(f, 1, 1), nn.BatchNorm2d(1))

    def forward(self, x, g):
        return x * torch.sigmoid(self.psi(F.relu(self.W_x(x) + self.W_g(g))))


class GridGate(nn.Module):
    """arXiv:1804.03999, eq. 1 and 2, on a grid, with the output transform of the official code."""

    def __init__(self, c, g, f):
        super().__init__()
        self.theta, self.phi = nn.Conv2d(c, f, 2, stride=2, bias=False), nn.Conv2d(g, f, 1)
        self.psi, self.W = nn.Conv2d(f, 1, 1), nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c))

    def forward(self, x, g):
        theta = self.theta(x)
        phi = F.interpolate(self.phi(g), theta.shape[2:], mode="bilinear", align_corners=False)
        alpha = torch.sigmoid(self.psi(F.relu(theta + phi)))
        return self.W(F.interpolate(alpha, x.shape[2:], mode="bilinear", align_corners=False) * x)


class AttUNet(nn.Module):
    """AttU_Net of LeeJunHyun/Image_Segmentation@7a6e5f9, network.py, by its keys, for any numbers of channels."""

    def __init__(self, channels, classes, widths):
        super().__init__()
        relu = nn.ReLU
        self.depth = len(widths)

        def double(inputs, outputs):
            convs = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
            module = nn.Module()
            module.conv = nn.Sequential(
                convs[0], nn.BatchNorm2d(outputs), relu(), convs[1], nn.BatchNorm2d(outputs), relu()
            )
            return module

        for n, (upper_width, width) in enumerate(zip((channels, *widths), widths, strict=False), start=1):
            self.add_module(f"Conv{n}", double(upper_width, width))
            if n > 1:
                up = nn.Module()
                conv = nn.Conv2d(width, upper_width, 3, padding=1)
                up.up = nn.Sequential(nn.Upsample(scale_factor=2), conv, nn.BatchNorm2d(upper_width), relu())
                self.add_module(f"Up{n}", up)
                self.add_module(f"Att{n}", LeeJunHyunGate(upper_width, upper_width, upper_width // 2))
                self.add_module(f"Up_conv{n}", double(2 * upper_width, upper_width))
        self.Conv_1x1 = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        skips = []
        for n in range(1, self.depth + 1):
            x = getattr(self, f"Conv{n}").conv(F.max_pool2d(x, 2) if n > 1 else x)
            skips.append(x)
        for n in range(self.depth, 1, -1):
            upsampled, skip = getattr(self, f"Up{n}").up(x), skips[n - 2]
            x = getattr(self, f"Up_conv{n}").conv(torch.cat([getattr(self, f"Att{n}")(skip, upsampled), upsampled], 1))
        return self.Conv_1x1(x)


def keras_se(layers, act, gate):
    """Return (variables by path, function of a tensor) for a published Keras module with random weights."""
    kernels = [torch.randn(shape, generator=RNG).double() for shape in ((1, 1, 6, 4), (4,), (1, 1, 4, 6), (6,))]
    names = [f"{layer}/{end}" for layer in layers for end in ("kernel", "bias")]
    w1, b1, w2, b2 = kernels

    def call(x):
        h = act(x.mean((2, 3)) @ w1[0, 0] + b1)
        return x * gate(h @ w2[0, 0] + b2)[:, :, None, None]

    return dict(zip(names, kernels, strict=True)), call


def keras_gate(name):
    """Return keras-unet-collection's attention_gate (theta_x, phi_g, relu, psi_f, sigmoid), as `keras_se` does."""
    shapes = {"theta_x": (6, 3), "phi_g": (5, 3), "psi_f": (3, 1)}
    kernels = {layer: torch.randn(1, 1, *shape, generator=RNG).double() for layer, shape in shapes.items()}
    biases = {layer: torch.randn(shape[1], generator=RNG).double() for layer, shape in shapes.items()}

    def conv(x, layer):
        return torch.einsum("nihw,io->nohw", x, kernels[layer][0, 0]) + biases[layer][:, None, None]

    def call(x, g):
        return x * torch.sigmoid(conv(F.relu(conv(x, "theta_x") + conv(g, "phi_g")), "psi_f"))

    state = {f"{name}_{layer}/kernel": kernel for layer, kernel in kernels.items()}
    return state | {f"{name}_{layer}/bias": bias for layer, bias in biases.items()}, call


GATE = {"gating_channels": 5, "inter_channels": 3}
PUBLISHED = {   # id: source, published module, block, its arguments, channels of its inputs
    "se timm": ("timm", lambda: SE(("fc1", "fc2"), 6, 4, conv=True), "se", {"reduced_channels": 4}, (6,)),
    "se of timm's MobileNets": (
        "timm", lambda: SE(("conv_reduce", "conv_expand"), 6, 4, conv=True), "se", {"reduced_channels": 4}, (6,)),
    "se of timm's EfficientNets": (
        "timm", lambda: SE(("conv_reduce", "conv_expand"), 6, 4, conv=True, act=F.silu), "se",
        {"reduced_channels": 4, "act": "silu"}, (6,)),
    "se torchvision": ("torchvision", lambda: SE(("fc1", "fc2"), 6, 4, conv=True), "se", {"reduced_channels": 4}, (6,)),
    "se monai": ("monai", lambda: SE(("fc.0", "fc.2"), 6, 3), "se", {"reduction": 2}, (6,)),
    "se moskomule": (
        "moskomule", lambda: SE(("fc.0", "fc.2"), 6, 3, bias=False), "se", {"reduction": 2, "bias": False}, (6,)),
    "se ai-med": ("ai-med", lambda: SE(("fc1", "fc2"), 6, 3), "se", {"reduction": 2}, (6,)),
    "se mmpretrain": (
        "mmpretrain", lambda: SE(("conv1.conv", "conv2.conv"), 6, 4, conv=True), "se", {"reduced_channels": 4}, (6,)),
    "channel attention": (
        "official", lambda: ChannelGate(("mlp.1", "mlp.3"), 6, 2), "channel_attention", {"reduction": 3}, (6,)),
    "spatial attention": ("official", SpatialGate, "spatial_attention", {"norm": True}, (6,)),
    "cbam": ("official", lambda: OfficialCBAM(6, 2), "cbam", {"reduction": 3, "norm": True}, (6,)),
    "eca": ("official", lambda: OfficialECA(5), "eca", {"kernel_size": 5}, (6,)),
    "gate leejunhyun": ("leejunhyun", lambda: LeeJunHyunGate(6, 5, 3), "attention_gate", GATE | {"norm": True}, (6, 5)),
    "gate official": (
        "official", lambda: GridGate(6, 5, 3), "attention_gate",
        GATE | {"stride": 2, "skip_bias": False, "output_transform": True}, (6, 5)),
}   # fmt: skip
every_layout = pytest.mark.parametrize("name", PUBLISHED)


def published(name):
    """Return source, published module with random weights, and a block of random initial weights for it."""
    source, module, block, arguments, channels = PUBLISHED[name]
    our_block = attzoo.create(block, channels[0], backend="torch", dtype=torch.float64, **arguments).eval()
    return source, random_weights(module()), our_block, channels


@every_layout
def test_published_weights_give_the_published_outputs(name):
    source, module, block, channels = published(name)
    attzoo.load_weights(block, module.state_dict(), source=source)
    xs = [torch.randn(2, c, 8, 6, generator=RNG).double() for c in channels]
    assert_close(block(*xs), module(*xs), rtol=1e-6, atol=1e-9)


@every_layout
def test_exported_weights_are_those_that_were_loaded(name):
    source, module, block, _ = published(name)
    attzoo.load_weights(block, module.state_dict(), source=source)
    exported = attzoo.export_weights(block, target="timm-efficientnet" if "Nets" in name else source)
    expected = {key: array for key, array in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert exported.keys() == expected.keys()
    for key, array in exported.items():
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected[key].numpy())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "layer1.0.se.", "module.layer1.0.se."])
def test_a_common_prefix_is_ignored(prefix):
    source, module, block, _ = published("se timm")
    state = {prefix + key: value for key, value in module.state_dict().items()}
    other_arrays = {"stem.weight": torch.ones(2)} if prefix.endswith("se.") else {}
    attzoo.load_weights(block, state | other_arrays, source=source)
    np.testing.assert_array_equal(attzoo.weights(block)["excite.bias"], module.state_dict()["fc2.bias"])


def test_keras_blocks_load_the_same_files():
    source, module, block, _ = published("cbam")
    layer = attzoo.create("cbam", 6, backend="keras", reduction=3, norm=True, dtype="float64")
    for target in (block, layer):
        attzoo.load_weights(target, module.state_dict(), source=source)
    for name, array in attzoo.weights(block).items():
        np.testing.assert_array_equal(attzoo.weights(layer)[name], array)


def two_layouts(state):
    """A network with two blocks in the two layouts of timm."""
    renamed = {key.replace("fc1", "conv_reduce").replace("fc2", "conv_expand"): value for key, value in state.items()}
    return {f"a.{key}": value for key, value in state.items()} | {f"b.{key}": value for key, value in renamed.items()}


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: {}, "expected the keys of timm, fc1.weight, fc1.bias, fc2.weight, fc2.bias or conv_reduce.weight"),
    (lambda s: s | {"norm.weight": s["fc1.bias"], "fc1.running_mean": s["fc1.bias"]}, "got also norm.weight"),
    (lambda s: s | {f"module.{key}": value + 1 for key, value in s.items()}, "got both fc1.weight and module.fc1.wei"),
    (lambda s: {f"my_{key}": value for key, value in s.items()}, "expected the keys of timm, .* got my_fc1.weight"),
    (lambda s: s | {"fc1.bias": s["fc1.bias"].to("meta")}, "expected fc1.bias to be a tensor that NumPy .* on meta"),
    (lambda s: s | {"fc1.bias": s["fc1.bias"].to_sparse()}, "expected fc1.bias to be a tensor that NumPy can read"),
    (lambda s: {0: s}, "expected a state dict, .* got keys that are not strings"),
    (lambda s: nn.Linear(2, 2), r"expected a state dict, .* got Linear: pass its state_dict\(\)"),
    (lambda s: attzoo.create("se", 8, backend="keras"), r"expected a state dict, .* got SE: pass {v\.path: v for v in"),
    (lambda s: s | {"fc1.weight": s["fc1.weight"].reshape(2, 12, 1, 1)}, r"expected fc1.weight of shape \(4, 6\), "),
    (lambda s: {prefix + key: array for key, array in s.items() for prefix in ("a.", "b.")},
     "of one block, got 2: give those whose .* 'a.'"),
    (lambda s: two_layouts(s), "of one block, got 2"),
    (lambda s: {"model": s, "ema": s, "epoch": 3}, "with one state dict, got 'model', 'ema': pass one of"),
    (lambda s: s | {"fc1.bias": s["fc1.bias"].int()}, "squeeze.bias must be a floating-point array, got int32"),
])   # fmt: skip
def test_unclear_states_are_refused_and_change_nothing(change, message):
    source, module, block, _ = published("se timm")
    weights_before = attzoo.weights(block)
    with pytest.raises((ValueError, TypeError), match=message):
        attzoo.load_weights(block, change(module.state_dict()), source=source)
    assert all(np.array_equal(array, weights_before[name]) for name, array in attzoo.weights(block).items())


@pytest.mark.parametrize(("name", "plain", "message"), [
    ("spatial attention", {"norm": False}, "got also spatial.bn.weight"),
    ("cbam", {"norm": False, "reduction": 3}, "got also SpatialGate.spatial.bn.weight"),
    ("gate official", GATE | {"stride": 2, "skip_bias": False}, "got also W.0.weight"),
    ("gate leejunhyun", GATE, "got also W_x.1.weight"),
])   # fmt: skip
def test_arrays_that_the_block_lacks_are_refused(name, plain, message):
    source, module, _, channels = published(name)
    block = attzoo.create(PUBLISHED[name][2], channels[0], backend="torch", dtype=torch.float64, **plain)
    with pytest.raises(ValueError, match=message):
        attzoo.load_weights(block, module.state_dict(), source=source)


XMU_CBAM = {"ca.se.0.weight": (2, 8, 1, 1), "ca.se.2.weight": (8, 2, 1, 1), "sa.conv.weight": (1, 2, 49, 49),
            "sa.conv.bias": (1,)}   # fmt: skip
ULTRALYTICS_CBAM = {"channel_attention.fc.weight": (8, 8, 1, 1), "channel_attention.fc.bias": (8,),
                    "spatial_attention.cv1.weight": (1, 2, 7, 7)}   # fmt: skip
FOREIGN = [   # block, source, shapes by key of a module that the block cannot represent, words of the error
    ("eca", "official", {"conv.weight": (1, 1, 3), "conv.bias": (1,)}, "ECAAttention of xmu, which has a bias in its"),
    ("cbam", "official", XMU_CBAM, "CBAMBlock of xmu, which has a bias in its spatial convolution, and adds its input"),
    ("cbam", "timm", ULTRALYTICS_CBAM, "CBAM of ultralytics, which computes the channel coefficients from averages al"),
    ("channel_attention", "timm", {"fc.weight": (8, 8, 1, 1), "fc.bias": (8,)}, "ChannelAttention of ultralytics, whi"),
    ("spatial_attention", "official", {"conv.weight": (1, 2, 49, 49), "conv.bias": (1,)}, "SpatialAttention of xmu, w"),
    ("se", "timm", {"fc1.weight": (2, 8, 1, 1), "bn.weight": (2,), "fc2.weight": (8, 2, 1, 1)},
     "SEModule with norm_layer of timm, which has a norm between its two layers. For inference, fold it: "),
    ("eca", "timm", {"conv.weight": (8, 1, 3), "conv2.weight": (1, 8, 3)}, "EcaModule with use_mlp=True of timm, wh"),
    ("cbam", "timm", {"channel.fc1.weight": (1, 8, 1, 1), "spatial.conv.conv.weight": (1, 1, 7, 7)},
     "LightCbamModule of timm, which applies its perceptron and its convolution to 0.5"),
    ("spatial_attention", "timm", {"conv.conv.weight": (1, 1, 7, 7)}, "LightSpatialAttn of timm, which convolves 0.5"),
]   # fmt: skip


def test_every_module_that_a_block_cannot_represent_has_a_case():
    modules = {
        (name, f"{module.module} of {module.library}")
        for name in attzoo.names() for module in registry.unsupported(name)
    }   # fmt: skip
    assert modules == {(name, message.partition(", w")[0]) for name, *_, message in FOREIGN}


@pytest.mark.parametrize("prefix", ["", "layer1.0.attention."])
@pytest.mark.parametrize(("name", "source", "shapes", "message"), FOREIGN)
def test_modules_that_the_block_cannot_represent_are_named(name, source, shapes, message, prefix):
    block = attzoo.create(name, 8, backend="torch")
    state = {prefix + key: torch.ones(shape) for key, shape in shapes.items()}
    for model, own_state in ((block, state), (nn.ModuleDict({"a": block}), prefix_all("a.", state))):
        with pytest.raises(ValueError, match=f"expected weights that the block can have, got those of {message}"):
            attzoo.load_weights(model, own_state, source=source)


def test_unsupported_libraries_are_named_by_the_reason():
    for name, source, message in (("cbam", "ultralytics", "expected a source whose weights .* CBAM of ultralytics, wh"),
                                  ("eca", "xmu", "got ECAAttention of xmu, which has a bias in its convolution")):
        with pytest.raises(ValueError, match=message):
            attzoo.load_weights(attzoo.create(name, 8, backend="torch"), {}, source=source)


@pytest.mark.parametrize("make", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}}])
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_checkpoint_files_are_read(name, make, tmp_path):
    source, module, block, _ = published("se timm")
    state = {f"module.{key}": value for key, value in module.state_dict().items()}
    if name.endswith("pth"):
        torch.save(make(state), tmp_path / name)
    else:
        save_file({key: value.bfloat16() for key, value in state.items()}, tmp_path / name)
    attzoo.load_weights(block, str(tmp_path / name), source=source)
    expected = module.state_dict()["fc2.bias"]
    expected = expected.bfloat16().double() if name.endswith("safetensors") else expected
    np.testing.assert_array_equal(attzoo.weights(block)["excite.bias"], expected)


class Touch:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    source, module, block, _ = published("se timm")
    torch.save(module.state_dict() | {"extra": Touch(str(tmp_path / "touched"))}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"expected a file with arrays only, .* else load it where you trust it"):
        attzoo.load_weights(block, tmp_path / "net.pth", source=source)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("name", "content", "error", "message"), [
    ("net.pth", b"PK", ValueError, "expected a file with arrays only"),
    ("net.safetensors", b"{}", ValueError, "expected a file with arrays only"),
    ("net.weights.h5", b"", ValueError, r"got .*h5: load it by Keras, and pass {v\.path"),
    ("none.pth", None, FileNotFoundError, "none.pth"),
])
def test_other_files_raise(name, content, error, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        attzoo.load_weights(attzoo.create("se", 8, backend="torch"), tmp_path / name, source="timm")


def prefix_all(prefix, state):
    """Return a state dict with a prefix before each key."""
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(("change", "by"), [
    (lambda state: prefix_all("model.", state) | {"model.9.fc1.weight": torch.ones(4, 6, 1, 1)}, "path"),
    (lambda state: prefix_all("stem.se.", without_prefix("1", state))
     | prefix_all("body.", without_prefix("2.0", state)), "kind"),
])
def test_blocks_of_a_model_with_other_paths_are_matched(change, by):
    net, state = network_of_blocks()
    report = attzoo.load_weights(net, change(state), source="timm")
    assert [match.by for match in report] == [by, by]
    sources = {"path": ["model.1", "model.2.0"], "kind": ["stem.se", "body"]}
    assert [match.source for match in report] == sources[by]
    np.testing.assert_array_equal(attzoo.weights(net[1])["excite.bias"], state["1.fc2.bias"])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_other_numbers_of_blocks_than_in_the_model_raise(count):
    source, module, _, _ = published("se timm")
    net = nn.Sequential(*(attzoo.create("se", 6, reduced_channels=4, backend="torch") for _ in range(2)))
    state = {key: a.float() for i in range(count) for key, a in prefix_all(f"layer{i}.", module.state_dict()).items()}
    state["layer9.fc1.weight"] = torch.ones(5, 6, 1, 1)
    before = attzoo.weights(net)
    with pytest.raises(ValueError, match=rf"expected 2 blocks of timm for those at '0', '1', .* got {count} of them"):
        attzoo.load_weights(net, state, source=source)
    assert all(np.array_equal(array, before[name]) for name, array in attzoo.weights(net).items())


OTHER_SIZES = {   # arguments of a block, source, arguments in which the source's block differs, words of the error
    "se": ((8,), {}, "timm", {"reduced_channels": 3},
           "got (3, 8, 1, 1): create the block with reduced_channels=3 instead of 1, which gives it these arrays"),
    "se without biases": ((8,), {}, "timm", {"bias": False}, "bias=False instead of True"),
    "se with biases": ((8,), {"bias": False}, "timm", {"bias": True}, "bias=True instead of False"),
    "se of other channels": ((8,), {}, "monai", {"channels": 6}, "with channels=6 instead of 8, which"),
    "se of Keras": ((8,), {"gate": "hard_sigmoid"}, "keras", {"reduced_channels": 3}, "reduced_channels=3 instead"),
    "eca": ((8,), {}, "official", {"kernel_size": 5}, "create the block with kernel_size=5 instead of 3, which"),
    "cbam": ((8,), {"variant": "timm"}, "timm", {"kernel_size": 3, "reduced_channels": 2},
             "reduced_channels=2 instead of 1 and kernel_size=3 instead of 7"),
    "attention_gate": ((8, 6), {}, "leejunhyun", {"inter_channels": 3, "norm": True},
                       "inter_channels=3 instead of 4 and norm=True instead of False"),
    "ema_attention": ((8,), {"groups": 2}, "official", {"groups": 4}, "create the block with groups=4 instead of 2"),
    "sk": ((8,), {}, "timm", {"split": True, "groups": 1},   # groups=2 without split gives these shapes too
           "create the block with groups=1 instead of 8 and split=True instead of False, which"),
    "gc": ((8,), {}, "timm", {"reduced_channels": 5, "epsilon": 1e-6}, "=5 instead of 2 and epsilon=1e-06 instead"),
    "unet": ((1, 2, (4, 8)), {"variant": "monai"}, "monai", {"channels": (4, 6)}, "channels=[4, 6] instead of [4, 8]"),
}   # fmt: skip


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_error_for_another_size_names_the_argument_that_gives_it(name):
    args, options, source, changes, message = OTHER_SIZES[name]
    kind = name.partition(" ")[0]
    block = attzoo.create(kind, *args, backend="torch", **options)
    config = block.spec.config() | changes
    state = attzoo.export_weights(type(block)(**config), target=source)
    with pytest.raises(ValueError) as error:   # noqa: PT011
        attzoo.load_weights(block, state, source=source)
    assert message in str(error.value)
    mended = type(block)(**config)
    attzoo.load_weights(mended, state, source=source)
    paths = ("layer.", "stem.") if source != "keras" and kind not in ("sk", "unet") else ()
    for path in paths:   # the block in a model, found by its path or by its kind
        with pytest.raises(ValueError) as error:   # noqa: PT011
            attzoo.load_weights(nn.ModuleDict({"layer": block}), prefix_all(path, state), source=source)
        assert message.rpartition(":")[2] in str(error.value)


def test_lists_are_read_and_parameters_without_values_are_refused():
    block = attzoo.create("se", 8, backend="torch", dtype=torch.float64)
    state = attzoo.export_weights(block, target="monai")
    attzoo.load_weights(block, state | {"fc.2.bias": [0.5] * 8}, source="monai")
    np.testing.assert_array_equal(attzoo.weights(block)["excite.bias"], np.full(8, 0.5))
    with pytest.raises(ValueError, match="uninitialized parameter"):
        attzoo.load_weights(block, state | {"fc.2.bias": nn.UninitializedParameter()}, source="monai")


def test_no_argument_is_named_for_arrays_that_no_argument_gives():
    block = attzoo.create("se", 8, backend="torch")
    state = attzoo.export_weights(block, target="timm") | {"fc2.weight": np.ones((7, 1, 1, 1))}
    with pytest.raises(ValueError, match=r"expected fc2.weight of shape \(8, 1\), .*, got \(7, 1, 1, 1\)$"):
        attzoo.load_weights(block, state, source="timm")


@pytest.mark.parametrize("kind", ["pth", "safetensors", "mapping"])
def test_error_without_source_names_the_sources(kind, tmp_path):
    block = attzoo.create("se", 8, backend="torch", reduced_channels=3)
    weights = {key: torch.from_numpy(array) for key, array in attzoo.export_weights(block, target="monai").items()}
    if kind != "mapping":
        (torch.save if kind == "pth" else save_file)(weights, weights := tmp_path / f"net.{kind}")
    others = "" if kind == "mapping" else f"{tmp_path / 'net'}.{kind} with "
    with pytest.raises(ValueError, match=r"give source='monai' or source='moskomule', whose keys these are$") as error:
        attzoo.load_weights(nn.Sequential(block), weights)
    assert f"expected weights 0.squeeze.weight, 0.squeeze.bias, 0.excite.weight, 0.excite.bias, got {others}fc." in str(
        error.value
    )
    for other in (attzoo.create("se", 6, backend="torch"), attzoo.create("cbam", 8, backend="torch")):
        with pytest.raises(ValueError, match=r"if they are of another library, give source=, one of 'timm', .*'$"):
            attzoo.load_weights(other, weights)


def test_error_for_damaged_files_of_attzoo_does_not_name_sources(tmp_path):
    attzoo.save(attzoo.create("se", 8, backend="torch"), tmp_path / "se.safetensors")
    content = (tmp_path / "se.safetensors").read_bytes()
    (tmp_path / "se.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"is not a file of attzoo.save, or is damaged: .*by attzoo.save$"):
        attzoo.load_weights(attzoo.create("se", 8, backend="torch"), tmp_path / "se.safetensors")


def test_blocks_whose_keys_begin_with_the_path_of_the_block_are_found():
    """The path of the block, "0", is also in the key "paths.0" of its weights."""
    block = attzoo.create("sk", 8, backend="torch")
    state = prefix_all("stem.", attzoo.export_weights(block, target="timm"))
    report = attzoo.load_weights(nn.Sequential(block), state, source="timm")
    assert [(match.source, match.by) for match in report] == [("stem", "kind")]


def test_negative_views_are_read():
    source, module, block, _ = published("se timm")
    state = module.state_dict()
    attzoo.load_weights(block, state | {"fc1.bias": torch._neg_view(state["fc1.bias"])}, source=source)
    np.testing.assert_array_equal(attzoo.weights(block)["squeeze.bias"], -state["fc1.bias"].numpy())


def test_unknown_sources_and_targets_are_refused():
    block = attzoo.create("se", 8, backend="torch")
    with pytest.raises(ValueError, match="unknown source of se 'tim'; did you mean 'timm'"):
        attzoo.load_weights(block, {}, source="tim")
    with pytest.raises(ValueError, match="unknown target of se 'caffe'"):
        attzoo.export_weights(block, target="caffe")
    gate = attzoo.create("attention_gate", 4, backend="torch", gating_channels=3, output_transform=True)
    with pytest.raises(ValueError, match=r"expected only arrays that .* also has, got output\.weight"):
        attzoo.export_weights(gate, target="monai")


KERAS = {   # source, state and function, block, its arguments, channels of its inputs
    "MobileNetV3": ("keras", lambda: keras_se(
        ("expanded_conv_3_squeeze_excite_conv", "expanded_conv_3_squeeze_excite_conv_1"), F.relu, F.hardsigmoid),
        "se", {"reduced_channels": 4, "gate": "hard_sigmoid"}, (6,)),
    "EfficientNet": ("keras", lambda: keras_se(("block1a_se_reduce", "block1a_se_expand"), F.silu, torch.sigmoid),
        "se", {"reduced_channels": 4, "act": "silu"}, (6,)),
    "gate": ("keras-unet-collection", lambda: keras_gate("att_up_0"), "attention_gate", GATE, (6, 5)),
}   # fmt: skip


@pytest.mark.parametrize("name", KERAS)
def test_keras_variables_give_the_published_outputs_and_are_exported(name):
    source, create_layer, block, arguments, channels = KERAS[name]
    state, call = create_layer()
    converted = attzoo.create(block, channels[0], backend="torch", dtype=torch.float64, **arguments)
    other_arrays = {
        "block1a_project_conv/kernel": torch.ones(1, 1, 6, 2), "expanded_conv_3_project/kernel": torch.ones(2)
    }   # fmt: skip
    attzoo.load_weights(converted.eval(), state | other_arrays, source=source)
    xs = [torch.randn(2, c, 8, 6, generator=RNG).double() for c in channels]
    assert_close(converted(*xs), call(*xs), rtol=1e-6, atol=1e-6)
    exported = attzoo.export_weights(converted, target="keras-efficientnet" if name == "EfficientNet" else source)
    prefix = next(iter(state)).removesuffix(next(iter(exported)))
    assert {prefix + key for key in exported} == state.keys()
    for key, array in exported.items():
        np.testing.assert_array_equal(array, state[prefix + key].numpy())


def test_a_unet_loads_and_exports_the_published_network():
    published = random_weights(AttUNet(2, 3, (4, 6, 8)))
    options = {"channels": (4, 6, 8), "variant": "leejunhyun", "dtype": torch.float64}
    converted = attzoo.create("unet", 2, 3, backend="torch", **options).eval()
    state = {f"module.{key}": value for key, value in published.state_dict().items()}
    attzoo.load_weights(converted, state, source="leejunhyun")
    x = torch.randn(2, 2, 16, 8, generator=RNG).double()
    assert_close(converted(x), published(x), rtol=1e-6, atol=1e-9)
    exported = attzoo.export_weights(converted, target="leejunhyun")
    expected = {key: array for key, array in published.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert exported.keys() == expected.keys()
    assert all(np.array_equal(array, expected[key]) for key, array in exported.items())


def test_unet_weights_for_other_arguments_raise():
    published = AttUNet(2, 3, (4, 6, 8))
    for options, message in (({"variant": "monai"}, r"got also Up2\.up\.1\.weight"),
                             ({"variant": "leejunhyun", "channels": (4, 6)}, r"got also Conv3\.conv\.0\.weight")):
        converted = attzoo.create("unet", 2, 3, backend="torch", **{"channels": (4, 6, 8)} | options)
        with pytest.raises(ValueError, match=message):
            attzoo.load_weights(converted, published.state_dict(), source="leejunhyun")


def network_of_blocks():
    """Return a network with an SE and, inside a layer, CBAM, and a state dict with timm's keys for both."""
    net = nn.Sequential(nn.Conv2d(3, 6, 1), attzoo.create("se", 6, backend="torch", reduced_channels=4))
    net.append(nn.Sequential(attzoo.create("cbam", 6, backend="torch", variant="timm", reduction=3)))
    se = random_weights(SE(("fc1", "fc2"), 6, 4, conv=True)).float().state_dict()
    cbam = {key: torch.from_numpy(array) for key, array in attzoo.export_weights(net[2][0], target="timm").items()}
    state = {f"1.{key}": value for key, value in se.items()}
    return net, state | {f"2.0.{key}": value + 1 for key, value in cbam.items()}


def test_all_blocks_of_a_model_are_loaded_and_exported_by_their_paths():
    net, state = network_of_blocks()
    other_arrays = {"0.weight": torch.ones(6, 3, 1, 1), "10.fc1.weight": torch.ones(1)}
    attzoo.load_weights(net, other_arrays | {f"module.{key}": value for key, value in state.items()}, source="timm")
    np.testing.assert_array_equal(attzoo.weights(net[1])["excite.bias"], state["1.fc2.bias"])
    exported = attzoo.export_weights(net, target="timm")
    assert exported.keys() == state.keys()
    assert all(np.array_equal(array, state[key]) for key, array in exported.items())


@pytest.mark.parametrize(("change", "message"), [
    (lambda net, s: s.pop("2.0.channel.fc1.weight"), "2.0: expected the keys of timm, channel.fc1.weight"),
    (lambda net, s: s.update({"1.norm.weight": s["1.fc1.bias"]}), "1: .*got also 1.norm.weight"),
    (lambda net, s: nn.utils.parametrizations.weight_norm(net[2][0].channel.squeeze), "to be stored, so that it can"),
])   # fmt: skip
def test_a_model_is_loaded_as_a_whole_or_not_at_all(change, message):
    net, state = network_of_blocks()
    change(net, state)
    weights_before = attzoo.weights(net[1])
    with pytest.raises(ValueError, match=message):
        attzoo.load_weights(net, state, source="timm")
    assert all(np.array_equal(array, weights_before[name]) for name, array in attzoo.weights(net[1]).items())


def test_model_without_blocks_raises():
    for call in (lambda net: attzoo.load_weights(net, {}, source="timm"),
                 lambda net: attzoo.export_weights(net, target="timm")):   # fmt: skip
        with pytest.raises(TypeError, match=r"expected an attzoo block .* got Sequential without any .* attzoo\.swap$"):
            call(nn.Sequential(nn.Conv2d(3, 6, 1)))


def test_every_source_has_a_layout_with_its_names():
    for name in attzoo.names():
        for source in registry.sources(name).values():
            layouts = registry.keys(name)[source.package]
            assert dict(source.names) in [dict(layout.names) for layout in layouts]


def test_an_attribute_named_module_is_no_wrapper():
    """The paths "module.a" and "a" would be equal if "module" were taken for the prefix of DataParallel."""
    outer, inner = (attzoo.create("se", 8, reduction=4, backend="torch") for _ in range(2))
    model = nn.ModuleDict({"module": nn.ModuleDict({"a": inner}), "a": outer})
    exported = attzoo.export_weights(model, target="timm")
    expected = {f"{path}.{layer}.{kind}" for path in ("module.a", "a") for layer in ("fc1", "fc2")
                for kind in ("weight", "bias")}   # fmt: skip
    assert exported.keys() == expected
    model = nn.ModuleDict({"module": inner})
    state = {f"module.{name}": array * 2 for name, array in attzoo.export_weights(inner, target="timm").items()}
    attzoo.load_weights(model, state, source="timm")
    assert_close(attzoo.weights(model)["module.squeeze.bias"], state["module.fc1.bias"])


@pytest.mark.parametrize("wrapper", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_paths_are_without_a_wrapper_inside_the_model(wrapper):
    model = nn.Sequential(wrapper(nn.Sequential(nn.ReLU(), attzoo.create("se", 8, reduction=4, backend="torch"))))
    assert next(iter(attzoo.export_weights(model, target="timm"))) == "0.1.fc1.weight"
    assert next(iter(attzoo.weights(model))) == "0.1.squeeze.weight"


def test_an_array_that_the_source_lacks_is_missing():
    plain = attzoo.create("attention_gate", 4, 3, inter_channels=2, norm=True, backend="torch")
    block = attzoo.create("attention_gate", 4, 3, inter_channels=2, norm=True, output_transform=True, backend="torch")
    state, weights_before = attzoo.export_weights(plain, target="leejunhyun"), attzoo.weights(block)
    with pytest.raises(ValueError, match=r"missing output\."):
        attzoo.load_weights(block, state, source="leejunhyun")
    for name, array in attzoo.weights(block).items():
        np.testing.assert_array_equal(array, weights_before[name])


def test_a_factor_that_the_target_lacks_is_not_left_out():
    model = attzoo.attach(nn.Sequential(nn.Conv2d(3, 8, 1)), "se", after="0", start="identity").model
    with pytest.raises(ValueError, match="expected only arrays that the target also has, got gamma: export"):
        attzoo.export_weights(model, target="timm")
    assert "fc1.weight" in attzoo.export_weights(model[0].attention.block, target="timm")
