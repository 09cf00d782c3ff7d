"""Weights of timm, torchvision, MONAI and keras.applications as installed give their outputs in attzoo, and back.

timm and torchvision are not among the development extras; `pip install` line: benchmarks.peers.INSTALL.
"""

from importlib import import_module

import numpy as np
import pytest
import torch
from libraries import RNG, X, library, network, random_weights
from torch import nn
from torch.testing import assert_close

import attzoo
from attzoo.adapters import adapter
from attzoo.ops.keras import keras

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def module_of(path, *args, **kwargs):
    """Create a module of a library from the path of its class."""
    module, _, name = path.rpartition(".")
    return getattr(library(module), name)(*args, **kwargs)


TV, TIMM, MONAI = "torchvision.ops.misc.SqueezeExcitation", "timm.models._efficientnet_blocks.SqueezeExcite", "monai."
BLOCKS = {   # id: source, function that makes the library's module, block, arguments of ours
    "SEModule": ("timm", lambda: module_of("timm.layers.SEModule", 8), "se", {"reduced_channels": 8}),
    "SqueezeExcite, SiLU": (
        "timm", lambda: module_of(TIMM, 8, 0.5, act_layer=nn.SiLU), "se", {"reduced_channels": 4, "act": "silu"}),
    "SqueezeExcite, hard swish": (
        "timm", lambda: module_of(TIMM, 8, 0.5, act_layer=nn.Hardswish, gate_layer="hard_sigmoid"), "se",
        {"reduced_channels": 4, "act": "hard_swish", "gate": "hard_sigmoid"}),
    "SqueezeExcitation, SiLU": (
        "torchvision", lambda: module_of(TV, 8, 3, activation=nn.SiLU), "se", {"reduced_channels": 3, "act": "silu"}),
    "SqueezeExcitation, hard sigmoid": (
        "torchvision", lambda: module_of(TV, 8, 3, scale_activation=nn.Hardsigmoid), "se",
        {"reduced_channels": 3, "gate": "hard_sigmoid"}),
    "EcaModule": ("timm", lambda: module_of("timm.layers.EcaModule", 64), "eca", {"channels": 64, "kernel_size": 3}),
    "CecaModule": (
        "timm", lambda: module_of("timm.layers.CecaModule", 64), "eca",
        {"channels": 64, "kernel_size": 3, "padding": "circular"}),
    "CbamModule": (
        "timm", lambda: module_of("timm.layers.cbam.CbamModule", 32), "cbam", {"channels": 32, "variant": "timm"}),
    "ChannelSELayer": (
        "monai", lambda: module_of(MONAI + "networks.blocks.ChannelSELayer", 2, 8), "se", {"reduction": 2}),
}   # fmt: skip


def assert_same(ours, theirs, *shapes):
    """Assert equal outputs outside training, for random inputs of float32."""
    xs = [torch.randn(shape, generator=RNG) for shape in shapes]
    with torch.no_grad():
        expected = theirs(*xs)
        assert expected.std() > 1e-3
        assert_close(ours(*xs), expected, **CLOSE)


@pytest.mark.parametrize("name", BLOCKS)
def test_weights_of_library_blocks_give_their_outputs_in_both_directions(name):
    source, make, block, arguments = BLOCKS[name]
    theirs = random_weights(make()).float()
    ours = attzoo.create(block, backend="torch", **{"channels": 8} | arguments).eval()
    attzoo.load_weights(ours, theirs.state_dict(), source=source)
    assert_same(ours, theirs, (2, ours.spec.channels, 9, 7))
    other = random_weights(make()).float()
    target = "timm-efficientnet" if name.startswith("SqueezeExcite,") else source
    exported = {key: torch.from_numpy(a) for key, a in attzoo.export_weights(ours, target=target).items()}
    missing = other.load_state_dict(exported, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    assert_same(ours, other, (2, ours.spec.channels, 9, 7))


@pytest.mark.parametrize(("source", "name", "kind"), [
    ("timm", "efficientnet_b0", "SqueezeExcite"),
    ("torchvision", "mobilenet_v3_small", "SqueezeExcitation"),
])   # fmt: skip
def test_weights_of_all_blocks_of_a_network_are_read_and_exported(source, name, kind):
    """A network whose SEs are exchanged reads the checkpoint of another one, and writes its SEs for it."""
    plain = network(source, name).double()
    net = network(source, name).double()
    attzoo.swap(net, "se", where=lambda path, module: type(module).__name__ == kind)
    trained = {key: value + 0.01 for key, value in plain.state_dict().items()}
    plain.load_state_dict(trained)
    net.load_state_dict(trained, strict=False)
    attzoo.load_weights(net, trained, source=source)
    with torch.no_grad():
        assert_close(net(X.double()), plain(X.double()), **CLOSE)
    exported = attzoo.export_weights(net, target="timm-efficientnet" if source == "timm" else source)
    assert exported.keys() == {key for key in trained if ".se." in key or ".fc1." in key or ".fc2." in key}
    assert all(np.array_equal(array, trained[key]) for key, array in exported.items())


UNETS = {   # arguments of MONAI, arguments of ours, shape of the image
    "2-D": ((2, 3, 2, (4, 6, 8, 10), (2, 2, 2)), {}, (2, 3, 16, 24)),
    "3-D": ((3, 1, 2, (4, 6, 8), (2, 2), 5), {"kernel_size": 5, "spatial_dims": 3}, (1, 1, 8, 4, 12)),
    "1-D": ((1, 1, 2, (4, 6), (3,), 3, 5), {"strides": 3, "up_kernel_size": 5, "spatial_dims": 1}, (2, 1, 24)),
}


@pytest.mark.parametrize("case", UNETS)
def test_weights_of_monai_unet_give_its_output_in_both_directions(case):
    theirs, options, shape = UNETS[case]
    published = random_weights(module_of("monai.networks.nets.AttentionUnet", *theirs)).float()
    with torch.no_grad():
        for name, p in published.named_parameters():
            p.mul_(0.3 if "conv" in name else 1)   # so that outputs keep their size from level to level
    ours = attzoo.create("unet", *theirs[1:4], backend="torch", variant="monai", **options).eval()
    attzoo.load_weights(ours, published.state_dict(), source="monai")
    assert_same(ours, published, shape)
    other = module_of("monai.networks.nets.AttentionUnet", *theirs).eval()
    exported = {key: torch.from_numpy(a) for key, a in attzoo.export_weights(ours, target="monai").items()}
    missing = other.load_state_dict(exported, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    assert_same(ours, other, shape)


def test_weights_of_monai_gate_give_its_output():
    theirs = random_weights(module_of("monai.networks.nets.attentionunet.AttentionBlock", 2, 3, 5, 6)).float()
    ours = attzoo.create("attention_gate", 6, 5, backend="torch", inter_channels=3, norm=True).eval()
    attzoo.load_weights(ours, theirs.state_dict(), source="monai")
    assert_same(ours, lambda x, g: theirs(g, x), (2, 6, 8, 6), (2, 5, 8, 6))


def part_of_keras(name):
    """Return a part of MobileNetV3 or EfficientNet of keras.applications, from the functions that make the networks."""
    module = import_module(f"keras.src.applications.{name}")
    x = keras.Input((None, None, 24))
    if name == "mobilenet_v3":
        return keras.Model(x, module._se_block(x, 24, 0.25, "expanded_conv_3_"))
    options = {"filters_in": 24, "filters_out": 24, "se_ratio": 0.25, "name": "block1a_"}
    return keras.Model(x, module.block(x, "swish", **options))


@pytest.mark.parametrize(("name", "first", "last", "arguments"), [
    ("mobilenet_v3", "expanded_conv_3_squeeze_excite_avg_pool", "expanded_conv_3_squeeze_excite_mul",
     {"reduced_channels": 8, "gate": "hard_sigmoid"}),
    ("efficientnet", "block1a_se_squeeze", "block1a_se_excite", {"reduced_channels": 6, "act": "silu"}),
])   # fmt: skip
def test_weights_of_keras_applications_se_give_its_output_and_are_exported(name, first, last, arguments):
    model = part_of_keras(name)
    theirs = keras.Model(model.get_layer(first).input, model.get_layer(last).output)
    theirs.set_weights([np.random.default_rng(i).normal(size=w.shape) for i, w in enumerate(theirs.weights)])
    image = np.random.default_rng(9).normal(size=(2, 5, 6, 24)).astype(np.float32)
    for backend in ("keras", "torch"):
        ours = attzoo.create("se", 24, backend=backend, **arguments)
        attzoo.load_weights(ours, {w.path: w for w in model.weights}, source="keras")
        y = adapter(backend).forward(ours, [np.moveaxis(image, -1, 1)], training=False)
        np.testing.assert_allclose(y, np.moveaxis(np.asarray(theirs(image)), -1, 1), **CLOSE)
    exported = attzoo.export_weights(ours, target="keras-efficientnet" if name == "efficientnet" else "keras")
    for array, variable in zip(exported.values(), theirs.weights, strict=True):
        np.testing.assert_array_equal(array, np.asarray(variable))
